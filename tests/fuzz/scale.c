/* SPDX-License-Identifier: MIT
 *
 * In libFuzzer's place: scale_TARGET SEED... grows each seed by repeating parts of it, and
 * compares what the target does with n, 2 n and 4 n bytes. Twice the bytes may cost at most
 * three times the steps. Steps are counted, not timed: comparisons of our code (the compiler
 * calls us at each), allocations and their bytes in all code, and the bytes that our code
 * hands to string functions. So the same build gives the same result on any machine. */
#include "tests/fuzz/fuzz.h"

#include "kernels/base/bytes.h"
#include "kernels/base/rng.h"

#include <sanitizer/allocator_interface.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIN_BYTES ((size_t)6000) /* n */
#define MAX_SEED ((size_t)48000) /* a longer seed shows nothing new */
#define PARTS 60                 /* taken from each seed */
#define MAX_GROWTH 9             /* 3 x 3: from n to 4 n */
/* The base cost of any input, even an empty one: files, threads. */
#define SLACK 20000
#define WORD_BYTES 16

static uint64_t steps;

/* --- counting ----------------------------------------------------------------------- */

/* clang-format off */
#define COUNT_CMP(name, type) \
    void __sanitizer_cov_trace_##name(type a, type b); \
    void __sanitizer_cov_trace_##name(type a, type b) { steps++; }
COUNT_CMP(cmp1, uint8_t) COUNT_CMP(cmp2, uint16_t) COUNT_CMP(cmp4, uint32_t)
COUNT_CMP(cmp8, uint64_t) COUNT_CMP(const_cmp1, uint8_t) COUNT_CMP(const_cmp2, uint16_t)
COUNT_CMP(const_cmp4, uint32_t) COUNT_CMP(const_cmp8, uint64_t)

#define REAL(result, name, ...) \
    result __real_##name(__VA_ARGS__); \
    result __wrap_##name(__VA_ARGS__); \
    result __wrap_##name(__VA_ARGS__)
    /* clang-format on */

    void __sanitizer_cov_trace_switch(uint64_t value, uint64_t *cases);
void __sanitizer_cov_trace_switch(uint64_t value, uint64_t *cases)
{
    steps++;
}

static void count_malloc(const volatile void *p, size_t n)
{
    steps += 1 + n / WORD_BYTES;
}

static void count_free(const volatile void *p)
{
    steps++;
}

REAL(void *, __asan_memcpy, void *to, const void *from, size_t n)
{
    steps += n / WORD_BYTES;
    return __real___asan_memcpy(to, from, n);
}

REAL(void *, __asan_memmove, void *to, const void *from, size_t n)
{
    steps += n / WORD_BYTES;
    return __real___asan_memmove(to, from, n);
}

REAL(void *, __asan_memset, void *to, int c, size_t n)
{
    steps += n / WORD_BYTES;
    return __real___asan_memset(to, c, n);
}

REAL(size_t, strlen, const char *s)
{
    const size_t n = __real_strlen(s);
    steps += n / WORD_BYTES;
    return n;
}

REAL(void *, memchr, const void *s, int c, size_t n)
{
    const char *at = __real_memchr(s, c, n);
    steps += (at ? (size_t)(at - (const char *)s) : n) / WORD_BYTES;
    return (void *)(uintptr_t)at;
}

REAL(int, memcmp, const void *a, const void *b, size_t n)
{
    steps += n / WORD_BYTES;
    return __real_memcmp(a, b, n);
}

REAL(char *, strchr, const char *s, int c)
{
    char *at = __real_strchr(s, c);
    steps += (at ? (size_t)(at - s) : __real_strlen(s)) / WORD_BYTES;
    return at;
}

REAL(char *, strstr, const char *s, const char *what)
{
    char *at = __real_strstr(s, what);
    steps += (at ? (size_t)(at - s) : __real_strlen(s)) / WORD_BYTES;
    return at;
}

REAL(void *, memmem, const void *s, size_t n, const void *what, size_t k)
{
    const char *at = __real_memmem(s, n, what, k);
    steps += (at ? (size_t)(at - (const char *)s) : n) / WORD_BYTES;
    return (void *)(uintptr_t)at;
}

/* --- inputs ------------------------------------------------------------------------- */

struct seed {
    const char *path;
    uint8_t *data;
    size_t n;
};

/* Repeats [start, end) of seed until it has about `bytes`; tail: appends the rest of
 * seed. */
struct growth {
    size_t start, end;
    bool tail;
};

static uint8_t *grow(size_t *n, const struct seed *s, struct growth g, size_t bytes)
{
    const size_t part = g.end - g.start, tail = g.tail ? s->n - g.end : 0,
                 fixed = g.start + tail,
                 times = bytes > fixed + part ? (bytes - fixed) / part : 1;
    *n = fixed + times * part;
    uint8_t *out = malloc(*n + 1), *at = out;
    if (!out)
        abort();
    memcpy(at, s->data, g.start);
    at += g.start;
    for (size_t i = 0; i < times; i++, at += part)
        memcpy(at, s->data + g.start, part);
    memcpy(at, s->data + g.end, tail);
    /* A header's length in front of it, as safetensors has it, grows with the header. */
    uint64_t header = 0;
    if (s->n > 8)
        memcpy(&header, s->data, 8);
    if (header && header <= s->n - 8 && g.start >= 8 && g.end <= 8 + header) {
        header = (g.tail ? header : *n - 8 - (times - 1) * part) + (times - 1) * part;
        memcpy(out, &header, 8);
    }
    return out;
}

static uint64_t cost(const struct seed *s, struct growth g, size_t bytes)
{
    size_t n;
    uint8_t *data = grow(&n, s, g, bytes);
    steps = 0;
    LLVMFuzzerTestOneInput(data, n);
    const uint64_t have = steps;
    free(data);
    return have;
}

/* Returns false if four times the bytes cost too much. *worst: the greatest growth so
 * far. */
static bool check(double *worst, const struct seed *s, struct growth g)
{
    const size_t n = s->n * 2 > MIN_BYTES ? s->n * 2 : MIN_BYTES;
    const uint64_t one = cost(s, g, n), two = cost(s, g, 2 * n), four = cost(s, g, 4 * n);
    const double growth = (double)four / (double)(one + SLACK);
    if (growth > *worst)
        *worst = growth;
    if (four <= MAX_GROWTH * (one + SLACK))
        return true;
    printf(
        "%s, bytes %zu to %zu repeated%s: %llu, %llu and %llu steps for %zu bytes, twice "
        "and four times as many\n",
        s->path, g.start, g.end, g.tail ? "" : " to the end", (unsigned long long)one,
        (unsigned long long)two, (unsigned long long)four, n);
    return false;
}

static int check_seed(double *worst, long *inputs, const struct seed *s)
{
    struct rng rng;
    int bad = 0;
    rng_seed(&rng, bytes_crc32(0, s->data, s->n));
    for (int i = 0; i < PARTS; i++) {
        /* Returns the whole, or a part of any length up to a power of two. */
        const uint64_t most = (uint64_t)1 << rng_below(&rng, 12);
        size_t part = i < 2 ? s->n : 1 + (size_t)rng_below(&rng, most);
        part = part < s->n ? part : s->n;
        const size_t start = (size_t)rng_below(&rng, s->n - part + 1);
        bad += !check(worst, s, (struct growth){start, start + part, i % 2 == 0});
        ++*inputs;
    }
    return bad;
}

static bool load(struct seed *s, const char *path)
{
    FILE *f = fopen(path, "rb");
    *s = (struct seed){.path = path, .data = malloc(MAX_SEED + 1)};
    if (!f || !s->data) {
        fprintf(stderr, "scale: %s cannot be read\n", path);
        exit(2);
    }
    s->n = fread(s->data, 1, MAX_SEED + 1, f);
    fclose(f);
    return s->n > 0 && s->n <= MAX_SEED;
}

int main(int argc, char **argv)
{
    double worst = 0;
    long inputs = 0;
    int bad = 0;
    LLVMFuzzerInitialize(&argc, &argv);
    __sanitizer_install_malloc_and_free_hooks(count_malloc, count_free);
    for (int i = 1; i < argc; i++) {
        struct seed s;
        if (load(&s, argv[i])) {
            /* creates tables that are made only once */
            LLVMFuzzerTestOneInput(s.data, s.n);
            bad += check_seed(&worst, &inputs, &s);
        }
        free(s.data);
    }
    printf("%ld inputs, %d of them too slow, at most %.1f times the steps for 4 times the "
           "bytes\n",
           inputs, bad, worst);
    return bad || !inputs;
}
