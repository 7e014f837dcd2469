/* SPDX-License-Identifier: MIT
 *
 * Checked sizes, allocation, and what /proc says about memory. */
#include "kernels/base/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

bool size_mul(size_t a, size_t b, size_t *out)
{
    if (b && a > SIZE_MAX / b)
        return false;
    *out = a * b;
    return true;
}

bool size_add(size_t a, size_t b, size_t *out)
{
    if (a > SIZE_MAX - b)
        return false;
    *out = a + b;
    return true;
}

enum err size_product(size_t *out, const int64_t *dim, int n, size_t unit)
{
    size_t total = unit;
    for (int i = 0; i < n; i++) {
        FAIL_IF(dim[i] < 0, ERR_FORMAT, "dimension %d is negative (%" PRId64 ")", i,
                dim[i]);
        FAIL_IF(!size_mul(total, (size_t)dim[i], &total), ERR_FORMAT,
                "size of a tensor overflows at dimension %d (%" PRId64 ")", i, dim[i]);
    }
    *out = total;
    return OK;
}

/* Through void * so that any object pointer's address can be passed without a cast. */
static void store(void *out, void *p)
{
    memcpy(out, &p, sizeof(p));
}

enum err mem_alloc(void *out, size_t n, size_t unit)
{
    size_t bytes = 0;
    FAIL_IF(!size_mul(n, unit, &bytes) || !size_add(bytes, MEM_ALIGN, &bytes), ERR_MEMORY,
            "allocation of %zu x %zu bytes overflows", n, unit);
    void *p = aligned_alloc(MEM_ALIGN, bytes / MEM_ALIGN * MEM_ALIGN);
    FAIL_IF(!p, ERR_MEMORY, "out of memory: %zu bytes", bytes);
    store(out, p);
    return OK;
}

enum err mem_calloc(void *out, size_t n, size_t unit)
{
    void *p = NULL;
    TRY(mem_alloc(&p, n, unit));
    memset(p, 0, n * unit);
    store(out, p);
    return OK;
}

enum err mem_resize(void *p, size_t old_n, size_t n, size_t unit)
{
    void *old = NULL, *fresh = NULL;
    memcpy(&old, p, sizeof(old));
    TRY(mem_alloc(&fresh, n, unit));
    if (old)
        memcpy(fresh, old, (old_n < n ? old_n : n) * unit);
    mem_free(old);
    store(p, fresh);
    return OK;
}

void mem_free(void *p)
{
    free(p);
}

enum err mem_strdup(char **out, const char *s)
{
    const size_t n = strlen(s) + 1;
    char *p = NULL;
    TRY(mem_alloc(&p, n, 1));
    memcpy(p, s, n);
    *out = p;
    return OK;
}

void mem_want_huge(void *p, size_t bytes)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t first = ((uintptr_t)p + page - 1) / page * page;
    const uintptr_t end = ((uintptr_t)p + bytes) / page * page;
    if (first < end)
        (void)madvise((void *)first, end - first, MADV_HUGEPAGE);
}

/* Returns VmHWM of /proc/self/status; 0 if it is not there. */
static uint64_t high_water_kib(void)
{
    char line[256];
    uint64_t kib = 0;
    FILE *f = fopen("/proc/self/status", "re");
    if (!f)
        return 0;
    while (!kib && fgets(line, sizeof(line), f))
        if (sscanf(line, "VmHWM: %" SCNu64, &kib) != 1)
            kib = 0;
    fclose(f);
    return kib;
}

/* ru_maxrss is not of this program alone: it begins with the peak of the process that
 * executed it. */
uint64_t mem_peak_bytes(void)
{
    struct rusage u;
    const uint64_t kib = high_water_kib();
    if (kib || getrusage(RUSAGE_SELF, &u))
        return 1024 * kib;
    return 1024 * (uint64_t)u.ru_maxrss;
}
