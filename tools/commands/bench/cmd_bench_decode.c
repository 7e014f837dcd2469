/* SPDX-License-Identifier: MIT
 *
 * `wkvq bench decode`: tokens per second of the packed runtime. It reports the bytes that
 * each token must read, and the bandwidth just measured here. It also measures a prompt's
 * products, with packed weights and --compute, and with unpacked weights in F32. */
#include "convert/artifact/artifact_random.h"
#include "convert/runtime/runtime.h"
#include "data/json.h"
#include "kernels/base/clock.h"
#include "kernels/base/mem.h"
#include "tools/bench/bench_data.h"
#include "tools/commands/bench/cmd_bench.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Larger than any cache. It is read a few times, and the fastest pass counts. */
#define READ_BYTES ((int64_t)256 << 20)
#define READ_CHUNK ((int64_t)1 << 20)
#define READ_PASSES 9
#define PRODUCT_PASSES 5

struct decode {
    const struct args *args;
    struct artifact *artifact;
    struct runtime *rt;
    struct pool *pool;
    float *logits;
    double *took; /* [steps] seconds per token */
    double read_bps, fill_s;
    double packed_s, unpacked_s; /* seconds of a chunk's products, the fastest of several */
    uint64_t weights, head, cache; /* bytes read per token */
};

/* --- the machine's read bandwidth
 * ------------------------------------------------------ */

struct reading {
    const char *memory;
    uint64_t *sum; /* [chunks]; stored, so that the compiler keeps the reads */
};

typedef uint64_t words __attribute__((vector_size(64)));

/* Reads four lines at a time with the widest loads available. With narrow loads a thread
 * has too few memory requests in flight. */
static inline __attribute__((always_inline)) uint64_t sum_of(const char *p)
{
    /* scalars, because an array would be stored to memory */
    words a = {0}, b = {0}, c = {0}, d = {0}, line;
    uint64_t all = 0;
    for (const char *end = p + READ_CHUNK; p < end; p += 4 * sizeof(line)) {
        memcpy(&line, p, sizeof(line));
        a += line;
        memcpy(&line, p + sizeof(line), sizeof(line));
        b += line;
        memcpy(&line, p + 2 * sizeof(line), sizeof(line));
        c += line;
        memcpy(&line, p + 3 * sizeof(line), sizeof(line));
        d += line;
    }
    a = (a + b) + (c + d);
    for (int k = 0; k < 8; k++)
        all += a[k];
    return all;
}

#if defined(__x86_64__)
__attribute__((target("avx512f"))) static uint64_t sum_avx512(const char *p)
{
    return sum_of(p);
}

__attribute__((target("avx2"))) static uint64_t sum_avx2(const char *p)
{
    return sum_of(p);
}
#endif

static uint64_t sum_best(const char *p)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f"))
        return sum_avx512(p);
    if (__builtin_cpu_supports("avx2"))
        return sum_avx2(p);
#endif
    return sum_of(p);
}

static void read_chunk(void *ctx, int64_t chunk, int thread)
{
    const struct reading *r = ctx;
    r->sum[chunk] += sum_best(r->memory + chunk * READ_CHUNK);
}

static enum err measure_read(struct decode *b)
{
    const int64_t chunks = READ_BYTES / READ_CHUNK;
    char *memory = NULL;
    struct reading r = {0};
    enum err err = OK;
    TRY_OUT(mem_alloc(&memory, (size_t)READ_BYTES, 1));
    TRY_OUT(mem_calloc(&r.sum, (size_t)chunks, sizeof(*r.sum)));
    memset(memory, 1, (size_t)READ_BYTES);
    r.memory = memory;
    for (int i = 0; i < READ_PASSES; i++) {
        const double start = clock_s();
        pool_run(b->pool, chunks, read_chunk, &r);
        const double bps = (double)READ_BYTES / (clock_s() - start);
        b->read_bps = bps > b->read_bps ? bps : b->read_bps;
    }
out:
    mem_free(r.sum);
    mem_free(memory);
    return err;
}

/* --- bytes read per token ------------------------------------------------------------- */

/* Returns the bytes of a projection that a token reads: of several experts those of its own. */
static uint64_t read_bytes(const struct arch *a, const struct packed_linear *p, int l)
{
    const uint64_t all = packed_linear_bytes(p);
    const int64_t stacked = arch_stacked(a, l);
    return stacked > 1 ? all / (uint64_t)stacked * (uint64_t)a->n_active : all;
}

/* Counts every weight that a token reads, the head as stored, and the cache of all earlier
 * tokens. Norms and activations stay in the first-level cache and are not counted. */
static void count_bytes(struct decode *b)
{
    const struct arch *arch = artifact_arch(b->artifact);
    b->weights = 0;
    for (int64_t i = 0; i < arch->n_layers; i++)
        for (int l = 0; l < N_LIN; l++)
            b->weights += read_bytes(arch, &artifact_block(b->artifact, i)->lin[l], l);
    b->head = packed_linear_bytes(artifact_head(b->artifact));
    b->cache = b->args->kv_bits == 16 ? (uint64_t)(b->args->depth * arch->n_layers * 2 *
                                                   arch->n_kv * arch->head_dim) *
                                            sizeof(float)
                                      : artifact_kv_bytes(b->artifact, 1, b->args->depth);
}

/* --- measuring ---------------------------------------------------------------------- */

/* Makes arbitrary ids, since their values do not affect the time. */
static int32_t id_at(const struct decode *b, int64_t t)
{
    return (int32_t)((t * 7919 + 13) % artifact_arch(b->artifact)->vocab);
}

static enum err fill_cache(struct decode *b)
{
    const int64_t depth = b->args->depth, chunk = b->args->chunk;
    int32_t *ids = NULL;
    enum err err = OK;
    TRY(mem_alloc(&ids, (size_t)depth, sizeof(*ids)));
    for (int64_t t = 0; t < depth; t++)
        ids[t] = id_at(b, t);
    const double start = clock_s();
    for (int64_t t = 0; t < depth; t += chunk)
        TRY_OUT(runtime_forward(b->rt, b->logits, false, ids + t,
                                depth - t < chunk ? depth - t : chunk));
    b->fill_s = clock_s() - start;
    err = runtime_mark(b->rt);
out:
    mem_free(ids);
    return err;
}

/* Measures each token at the same depth, by truncating the cache again. */
static enum err decode_tokens(struct decode *b)
{
    for (int64_t i = -1; i < b->args->steps; i++) {
        const int32_t id = id_at(b, i + 1);
        runtime_rewind(b->rt);
        const double start = clock_s();
        TRY(runtime_forward(b->rt, b->logits, false, &id, 1));
        if (i >= 0)
            b->took[i] = clock_s() - start;
    }
    return OK;
}

/* --- a prompt's products -------------------------------------------------------------- */

static enum err packed_products(struct decode *b)
{
    for (int i = 0; i < PRODUCT_PASSES; i++) {
        const double start = clock_s();
        TRY(runtime_products(b->rt, b->args->chunk));
        const double took = clock_s() - start;
        b->packed_s = !i || took < b->packed_s ? took : b->packed_s;
    }
    return OK;
}

/* Multiplies y = x W^T in F32, once for each block, with the same W; that of one expert where a
 * layer has several, as runtime_products() does. */
static enum err unpacked_linear(struct decode *b, struct dev *dev, int l)
{
    const struct arch *m = artifact_arch(b->artifact);
    const int64_t rows = arch_out(m, l) / arch_stacked(m, l);
    struct tensor x = {0}, w = {0}, y = {0};
    double best = 0;
    enum err err = OK;
    TRY_OUT(bench_tensor(&x, dev, DT_F32, b->args->chunk, arch_in(m, l)));
    TRY_OUT(bench_tensor(&w, dev, DT_F32, rows, arch_in(m, l)));
    TRY_OUT(bench_tensor(&y, dev, DT_F32, b->args->chunk, rows));
    for (int i = 0; i < PRODUCT_PASSES; i++) {
        const double start = clock_s();
        for (int64_t block = 0; block < m->n_layers; block++)
            TRY_OUT(dev_gemm(dev, GEMM_NT, &y, &x, &w, false));
        const double took = clock_s() - start;
        best = !i || took < best ? took : best;
    }
    b->unpacked_s += best;
out:
    dev_free(dev, x.data);
    dev_free(dev, w.data);
    dev_free(dev, y.data);
    return err;
}

static enum err measure_products(struct decode *b)
{
    struct dev *dev = NULL;
    enum err err = OK;
    TRY(packed_products(b));
    TRY(dev_open(&dev, &(struct dev_settings){"cpu", pool_threads(b->pool)}));
    for (int l = 0; l < N_LIN; l++)
        TRY_OUT(unpacked_linear(b, dev, l));
out:
    dev_close(&dev);
    return err;
}

/* --- opening ------------------------------------------------------------------------ */

/* Makes the artifact's settings with the defaults of `convert`. */
static enum err open_made_up(struct decode *b)
{
    struct arch arch;
    const struct weight_spec w = {.method = WEIGHT_RTN, .bits = 4, .group_size = 128};
    const struct kv_spec kv = {
        .method = KV_TOKEN, .bits = 4, .group_size = 128, .past_only = true, .window = 1};
    TRY(arch_of_shape(&arch, b->args->shape));
    return artifact_random(&b->artifact, &arch, &w, &kv, 1);
}

/* Returns the type of a prompt's activations: F32 unless --compute bf16 can round them. */
static enum dtype act_of(const struct decode *b)
{
    const bool bf16 = !strcmp(b->args->compute, "bf16");
    return bf16 && runtime_rounds() ? DT_BF16 : DT_F32;
}

static enum err open_decode(struct decode *b)
{
    const struct args *a = b->args;
    const int threads = a->threads > 0 ? (int)a->threads : 0;
    if (a->pos.n < 2)
        TRY(open_made_up(b));
    else
        TRY(artifact_open(&b->artifact, a->pos.item[1], ARTIFACT_LOAD));
    const struct runtime_settings s = {.threads = threads,
                                       .max_tokens = a->depth + 1,
                                       .kv_bits = (int)a->kv_bits,
                                       .act = act_of(b)};
    TRY(runtime_open(&b->rt, b->artifact, &s));
    TRY(pool_open(&b->pool, threads));
    TRY(mem_alloc(&b->took, (size_t)a->steps, sizeof(*b->took)));
    return mem_alloc(&b->logits, (size_t)artifact_arch(b->artifact)->vocab,
                     sizeof(*b->logits));
}

static void close_decode(struct decode *b)
{
    runtime_close(&b->rt);
    artifact_close(&b->artifact);
    pool_close(&b->pool);
    mem_free(b->took);
    mem_free(b->logits);
}

/* --- the report --------------------------------------------------------------------- */

static double fill_rate(const struct decode *b)
{
    return b->args->depth ? (double)b->args->depth / b->fill_s : 0;
}

static const char *subject(const struct decode *b)
{
    return b->args->pos.n < 2 ? b->args->shape : b->args->pos.item[1];
}

/* Of what runtime_products() multiplies. */
static double chunk_flops(const struct decode *b)
{
    const struct arch *a = artifact_arch(b->artifact);
    double weights = 0;
    for (int l = 0; l < N_LIN; l++)
        weights += (double)(arch_out(a, l) / arch_stacked(a, l) * arch_in(a, l));
    return 2.0 * (double)b->args->chunk * weights * (double)a->n_layers;
}

static void print_text(const struct decode *b, double median, double best)
{
    const double bytes = (double)(b->weights + b->head + b->cache);
    printf("%s; %d threads read %.1f GB/s\n", subject(b), pool_threads(b->pool),
           1e-9 * b->read_bps);
    printf("a token at depth %" PRId64 " reads %.2f MB: weights %.2f, head %.2f, cache "
           "%.2f\n",
           b->args->depth, 1e-6 * bytes, 1e-6 * (double)b->weights, 1e-6 * (double)b->head,
           1e-6 * (double)b->cache);
    printf("median  %8.3f ms  %7.1f tokens/s  %5.1f GB/s  %5.1f %%\n", 1e3 * median,
           1 / median, 1e-9 * bytes / median, 100 * bytes / median / b->read_bps);
    printf("best    %8.3f ms  %7.1f tokens/s  %5.1f GB/s  %5.1f %%\n", 1e3 * best, 1 / best,
           1e-9 * bytes / best, 100 * bytes / best / b->read_bps);
    if (b->args->depth)
        printf("before it, in chunks of %" PRId64 ": %.1f tokens/s\n", b->args->chunk,
               fill_rate(b));
    printf("products of %" PRId64 " tokens, %s: %.1f GFLOP/s, on unpacked weights %.1f: "
           "%.1f %%\n",
           b->args->chunk, dtype_name(act_of(b)), 1e-9 * chunk_flops(b) / b->packed_s,
           1e-9 * chunk_flops(b) / b->unpacked_s, 100 * b->unpacked_s / b->packed_s);
}

static enum err print_json(const struct decode *b, double median, double best)
{
    const double bytes = (double)(b->weights + b->head + b->cache);
    json_t *o = json_pack(
        "{s:s, s:i, s:s, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}",
        "subject", subject(b), "threads", pool_threads(b->pool), "compute",
        dtype_name(act_of(b)), "chunk", (json_int_t)b->args->chunk, "depth",
        (json_int_t)b->args->depth, "weight_bytes", (json_int_t)b->weights, "head_bytes",
        (json_int_t)b->head, "cache_bytes", (json_int_t)b->cache, "read_bytes_per_s",
        b->read_bps, "token_s", median, "best_token_s", best, "tokens_per_s", 1 / median,
        "share", bytes / median / b->read_bps, "prefill_tokens_per_s", fill_rate(b),
        "prefill_flops_per_s", chunk_flops(b) / b->packed_s, "unpacked_flops_per_s",
        chunk_flops(b) / b->unpacked_s, "prefill_share", b->unpacked_s / b->packed_s);
    const enum err err = json_print(o, JSON_REAL_PRECISION(9));
    json_decref(o);
    return err;
}

enum err bench_decode(struct args *a)
{
    struct decode b = {.args = a};
    enum err err = OK;
    TRY_OUT(open_decode(&b));
    TRY_OUT(measure_read(&b));
    count_bytes(&b);
    TRY_OUT(fill_cache(&b));
    TRY_OUT(decode_tokens(&b));
    TRY_OUT(measure_products(&b));
    /* sorted by the median */
    const double median = bench_median(b.took, a->steps), best = b.took[0];
    if (a->json)
        TRY_OUT(print_json(&b, median, best));
    else
        print_text(&b, median, best);
out:
    close_decode(&b);
    return err;
}
