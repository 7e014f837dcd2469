/* SPDX-License-Identifier: MIT
 *
 * Opening and closing the cpu device, the choice of its instruction set, and how operations
 * are spread over threads. */
#include "kernels/base/mem.h"
#include "kernels/cpu/cpu.h"

#include <string.h>

/* Elements in one chunk of work: large enough that handing it out costs little, small
 * enough that all threads end at about the same time. */
#define CHUNK_ELEMS 32768

static enum cpu_level level_limit = N_CPU_LEVELS - 1;

enum cpu_level cpu_best_level(void)
{
    return isa_supported(ISA_AVX512BF16) ? CPU_AVX512BF16
           : isa_supported(ISA_AVX512)   ? CPU_AVX512
           : isa_supported(ISA_AVX2)     ? CPU_AVX2
                                         : CPU_PLAIN;
}

void cpu_set_level(enum cpu_level level)
{
    level_limit = level;
}

void *cpu_scratch(struct dev *d, enum cpu_slot slot, size_t bytes)
{
    struct cpu *c = d->priv;
    if (bytes <= c->slot_bytes[slot])
        return c->slot[slot];
    mem_free(c->slot[slot]);
    c->slot[slot] = NULL;
    c->slot_bytes[slot] = 0;
    if (mem_alloc(&c->slot[slot], bytes, 1)) {
        dev_fail(d, ERR_MEMORY, "no memory for %zu bytes of scratch", bytes);
        return NULL;
    }
    c->slot_bytes[slot] = bytes;
    return c->slot[slot];
}

struct rows_job {
    void (*row)(const void *ctx, int64_t r);
    const void *ctx;
    int64_t rows, step;
};

static void rows_chunk(void *ctx, int64_t chunk, int thread)
{
    const struct rows_job *j = ctx;
    const int64_t begin = chunk * j->step;
    const int64_t end = begin + j->step < j->rows ? begin + j->step : j->rows;
    for (int64_t r = begin; r < end; r++)
        j->row(j->ctx, r);
}

void cpu_run_rows(struct dev *d, int64_t rows, int64_t cols,
                  void (*row)(const void *ctx, int64_t r), const void *ctx)
{
    struct rows_job j = {row, ctx, rows, cols < CHUNK_ELEMS ? CHUNK_ELEMS / cols : 1};
    pool_run(d->pool, (rows + j.step - 1) / j.step, rows_chunk, &j);
}

struct flat_job {
    void (*part)(const void *ctx, int64_t begin, int64_t end);
    const void *ctx;
    int64_t n;
};

static void flat_chunk(void *ctx, int64_t chunk, int thread)
{
    const struct flat_job *j = ctx;
    const int64_t begin = chunk * CHUNK_ELEMS, end = begin + CHUNK_ELEMS;
    j->part(j->ctx, begin, end < j->n ? end : j->n);
}

void cpu_run_flat(struct dev *d, int64_t n,
                  void (*part)(const void *ctx, int64_t begin, int64_t end),
                  const void *ctx)
{
    struct flat_job j = {part, ctx, n};
    pool_run(d->pool, (n + CHUNK_ELEMS - 1) / CHUNK_ELEMS, flat_chunk, &j);
}

static void cpu_close(struct dev *d)
{
    struct cpu *c = d->priv;
    if (!c)
        return;
    cpu_gemm_close(&c->gemm);
    for (int i = 0; i < N_SLOTS; i++)
        mem_free(c->slot[i]);
    mem_free(c);
    d->priv = NULL;
}

static void fill_level(struct dev_ops *o, enum cpu_level level)
{
    cpu_fill_plain(o);
#if defined(__x86_64__)
    if (level >= CPU_AVX2)
        cpu_fill_avx2(o);
    if (level >= CPU_AVX512)
        cpu_fill_avx512(o);
    if (level >= CPU_AVX512BF16) {
        cpu_fill_avx512bf16(o);
        cpu_fill_attn_pairs_avx512bf16(o);
    }
#endif
}

enum err cpu_fill(struct dev *d, int threads)
{
    struct cpu *c = NULL;
    TRY(mem_calloc(&c, 1, sizeof(*c)));
    const enum cpu_level best = cpu_best_level();
    c->ref = d->ops;
    c->level = best < level_limit ? best : level_limit;
    d->priv = c;
    d->ops.name = "cpu";
    d->ops.close = cpu_close;
    TRY(pool_open(&d->pool, threads));
    TRY(cpu_gemm_open(&c->gemm, c->level, d->pool));
    fill_level(&d->ops, c->level);
    d->ops.gemm = cpu_gemm;
    d->preferred_act = cpu_gemm_has_bf16(c->gemm) ? DT_BF16 : DT_F32;
    cpu_gemm_about(c->gemm, d->about, sizeof(d->about));
    return OK;
}
