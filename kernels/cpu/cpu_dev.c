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

static enum isa last_isa = N_ISAS;

/* Each set's kernels, NULL where there are none; `attention` replaces some of them. */
static const struct {
    void (*kernels)(struct dev_ops *o);
    void (*attention)(struct dev_ops *o);
} fill[N_ISAS] = {
    [ISA_PLAIN] = {cpu_fill_plain},
#if defined(__x86_64__)
    [ISA_AVX2] = {cpu_fill_avx2},
    [ISA_AVX512] = {cpu_fill_avx512},
    [ISA_AVX512BF16] = {cpu_fill_avx512bf16, cpu_fill_attn_pairs_avx512bf16},
#elif defined(__aarch64__)
    [ISA_NEON] = {cpu_fill_neon},
    [ISA_NEONBF16] = {cpu_fill_neonbf16, cpu_fill_attn_pairs_neonbf16},
#endif
};

bool cpu_has_isa(enum isa isa)
{
    return fill[isa].kernels && isa_supported(isa);
}

/* The last set up to `limit` that the device has. */
static enum isa best_up_to(enum isa limit)
{
    enum isa best = ISA_PLAIN;
    for (enum isa isa = ISA_PLAIN; isa < N_ISAS && isa <= limit; isa++)
        if (cpu_has_isa(isa))
            best = isa;
    return best;
}

bool cpu_uses_all_isas(void)
{
    return last_isa == N_ISAS;
}

enum isa cpu_best_isa(void)
{
    const bool pairs = !cpu_uses_all_isas() || isa_bf16_pays();
    return best_up_to(pairs ? last_isa : ISA_AVX512VNNI);
}

void cpu_limit_isa(enum isa isa)
{
    last_isa = isa;
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

static void fill_table(struct dev_ops *o, enum isa isa)
{
    fill[isa].kernels(o);
    if (fill[isa].attention)
        fill[isa].attention(o);
}

int64_t cpu_attn_bytes(const struct attn_shape *s, int threads)
{
    struct dev_ops o = {0};
    fill_table(&o, cpu_best_isa());
    return o.attn_bytes(s, threads);
}

enum err cpu_fill(struct dev *d, int threads)
{
    struct cpu *c = NULL;
    TRY(mem_calloc(&c, 1, sizeof(*c)));
    const enum isa isa = cpu_best_isa();
    c->ref = d->ops;
    d->priv = c;
    d->ops.name = "cpu";
    d->ops.close = cpu_close;
    TRY(pool_open(&d->pool, threads));
    TRY(cpu_gemm_open(&c->gemm, isa, d->pool));
    fill_table(&d->ops, isa);
    d->ops.gemm = cpu_gemm;
    d->widens = !cpu_gemm_has_bf16(c->gemm);
    d->preferred_act = d->widens ? DT_F32 : DT_BF16;
    cpu_gemm_about(c->gemm, d->about, sizeof(d->about));
    return OK;
}
