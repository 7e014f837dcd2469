/* SPDX-License-Identifier: MIT
 *
 * Matrix products: the choice of the library, and the grid of tiles.
 *
 * C [m,n] is cut into a grid of at least two tiles per thread; all tiles of a row of the
 * grid have one height, except the last, and all of a column one width:
 *
 *            tile_n   tile_n   rest
 *   tile_m  [ whole ][ whole ][ r ]      four shapes at most, so at most four prepared
 *   tile_m  [ whole ][ whole ][ r ]      kernels: [row edge][column edge]
 *   rest    [   b   ][   b   ][ c ]
 *
 * Each tile is one call of a library on one thread. k is never split, so every element of
 * C is summed by one call, but the library may sum differently for another tile shape. */
#include "kernels/base/clock.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/gemm.h"

#include <stdatomic.h>
#include <stdio.h>

/* Below this number of multiplications, waking the threads costs more than they save. */
#define SMALL_PRODUCT (1 << 18)
/* The smallest height and width of a tile. */
#define LEAST_TILE 64

struct cpu_gemm {
    const struct openblas *blas; /* NULL: not there */
    struct onednn *onednn;       /* NULL: not there */
    bool bf16;                   /* BF16 is multiplied as such, by oneDNN */
    bool tiles;                  /* in AMX units */
    int threads;
};

/* BF16 is multiplied as such where that is faster than F32: in AMX units, or by the instructions of
 * the set in use. AMX needs no kernels of ours, only a processor that may use every set. */
static void choose_bf16(struct cpu_gemm *g, enum isa isa)
{
    g->tiles = g->onednn && cpu_uses_all_isas() && onednn_has_tiles();
    g->bf16 = g->tiles || (g->onednn && isa == ISA_AVX512BF16);
}

enum err cpu_gemm_open(struct cpu_gemm **out, enum isa isa, struct pool *pool)
{
    struct cpu_gemm *g = NULL;
    TRY(mem_calloc(&g, 1, sizeof(*g)));
    g->threads = pool_threads(pool);
    enum err err = openblas_open(&g->blas, g->threads);
    if (!err)
        err = onednn_open(&g->onednn, g->threads);
    if (err == ERR_MEMORY) {
        cpu_gemm_close(&g);
        return err;
    }
    if (err)
        err_clear(); /* there are others */
    choose_bf16(g, isa);
    if (!g->blas)
        log_warn(
            "libopenblas.so.0 not found (package libopenblas0): F32 matrix products by "
            "%s",
            g->onednn ? "oneDNN" : "plain loops, which is very slow");
    *out = g;
    return OK;
}

void cpu_gemm_close(struct cpu_gemm **pg)
{
    if (!*pg)
        return;
    onednn_close(&(*pg)->onednn);
    mem_free(*pg);
    *pg = NULL;
}

bool cpu_gemm_has_bf16(const struct cpu_gemm *g)
{
    return g->bf16;
}

void cpu_gemm_about(const struct cpu_gemm *g, char *text, size_t bytes)
{
    char f32[96] = "plain loops", bf16[64] = "as f32, no AVX512-BF16", version[32];
    const bool slow = isa_supported(ISA_AVX512BF16);
    onednn_version(version, sizeof(version));
    if (g->blas)
        snprintf(f32, sizeof(f32), "OpenBLAS %s %s%s", g->blas->version, g->blas->core,
                 g->blas->steered ? " (what the CPU has)" : " (its or your choice)");
    else if (g->onednn)
        snprintf(f32, sizeof(f32), "oneDNN %s, no OpenBLAS found", version);
    if (g->bf16)
        snprintf(bf16, sizeof(bf16), "oneDNN %s, %s", version,
                 g->tiles ? "AMX" : "AVX512-BF16");
    else if (!g->onednn)
        snprintf(bf16, sizeof(bf16), "as f32, no oneDNN");
    else if (slow)
        snprintf(bf16, sizeof(bf16), "as f32, which is faster here");
    snprintf(text, bytes, "bf16 GEMM: %s; f32 GEMM: %s; threads: %d", bf16, f32,
             g->threads);
}

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* One product and its grid. */
struct product {
    const struct cpu_gemm *g;
    struct gemm_tile whole;
    const struct tensor *a, *b, *c;
    int64_t m, n, step_m, step_n, n_cols;
    /* Of the four kinds of tiles: at the edge of rows 2, at the edge of columns 1, in sum. */
    struct onednn_kernel *kernel[ONEDNN_TILES_MAX];
    atomic_bool failed;
};

static void tile_chunk(void *ctx, int64_t chunk, int thread)
{
    struct product *p = ctx;
    const int64_t m0 = chunk / p->n_cols * p->step_m, n0 = chunk % p->n_cols * p->step_n;
    struct gemm_tile t = p->whole;
    t.m = least(p->step_m, p->m - m0);
    t.n = least(p->step_n, p->n - n0);
    const void *a = cpu_at(p->a, t.kind == GEMM_TN ? m0 : m0 * t.lda);
    const void *b = cpu_at(p->b, t.kind == GEMM_NT ? n0 * t.ldb : n0);
    void *c = cpu_at(p->c, m0 * t.ldc + n0);
    struct onednn_kernel *k = p->kernel[2 * (t.m < p->step_m) + (t.n < p->step_n)];
    if (!k)
        openblas_tile(&t, a, b, c);
    else if (!onednn_run(k, thread, a, b, c))
        p->failed = true;
}

/* Row stride. A single row may have any ld, but libraries check that it is large enough. */
static int64_t row_distance(const struct tensor *x)
{
    return x->dim[0] > 1 ? x->ld : x->dim[1];
}

/* At least two tiles per thread, so that threads end together even if one is interrupted.
 * Nearly square, because each tile packs its own rows of A and columns of B. */
static void cut_tiles(struct product *p)
{
    const int64_t wanted = p->g->threads > 1 ? 2 * p->g->threads : 1;
    int64_t rows = 1, cols = 1;
    p->step_m = p->m;
    p->step_n = p->n;
    if (p->m * p->n * p->whole.k < SMALL_PRODUCT)
        return;
    while (rows * cols < wanted && (p->step_m > LEAST_TILE || p->step_n > LEAST_TILE)) {
        if (p->step_m >= p->step_n)
            rows *= 2;
        else
            cols *= 2;
        p->step_m = least((p->m / rows + 15) / 16 * 16, p->m);
        p->step_n = least((p->n / cols + 63) / 64 * 64, p->n);
    }
}

static struct product cut(const struct cpu_gemm *g, enum gemm_kind kind,
                          const struct tensor *c, const struct tensor *a,
                          const struct tensor *b, bool accumulate)
{
    struct product p = {.g = g, .a = a, .b = b, .c = c, .m = c->dim[0], .n = c->dim[1]};
    p.whole = (struct gemm_tile){.kind = kind,
                                 .k = a->dim[kind != GEMM_TN],
                                 .lda = row_distance(a),
                                 .ldb = row_distance(b),
                                 .ldc = row_distance(c),
                                 .in = a->dtype,
                                 .out = c->dtype,
                                 .accumulate = accumulate};
    cut_tiles(&p);
    p.n_cols = (p.n + p.step_n - 1) / p.step_n;
    return p;
}

/* *all is set to true if every tile has a kernel. */
static enum err find_kernels(bool *all, struct product *p)
{
    struct gemm_tile t[ONEDNN_TILES_MAX];
    for (int i = 0; i < ONEDNN_TILES_MAX; i++) {
        const bool edge_m = i >> 1, edge_n = i & 1;
        t[i] = p->whole;
        t[i].m = edge_m ? p->m % p->step_m : p->step_m;
        t[i].n = edge_n ? p->n % p->step_n : p->step_n;
    }
    TRY(onednn_find(p->kernel, p->g->onednn, t, ONEDNN_TILES_MAX));
    *all = true;
    for (int i = 0; i < ONEDNN_TILES_MAX; i++)
        *all &= !t[i].m || !t[i].n || p->kernel[i];
    return OK;
}

static void multiply(struct dev *d, enum gemm_kind kind, const struct tensor *c,
                     const struct tensor *a, const struct tensor *b, bool accumulate)
{
    const struct cpu *cpu = d->priv;
    const struct cpu_gemm *g = cpu->gemm;
    struct product p = cut(g, kind, c, a, b, accumulate);
    const bool blas = a->dtype == DT_F32 && g->blas;
    bool found = blas;
    if (!blas && g->onednn && find_kernels(&found, &p)) {
        dev_fail(d, ERR_MEMORY, "out of memory for a product's kernel");
        return;
    }
    if (!found) {
        cpu->ref.gemm(d, kind, c, a, b, accumulate);
        return;
    }
    pool_run(d->pool, (p.m + p.step_m - 1) / p.step_m * p.n_cols, tile_chunk, &p);
    if (p.failed)
        dev_fail(d, ERR_DEVICE, "oneDNN could not multiply");
}

/* Without BF16 instructions, BF16 operands are widened to F32 first. */
static void multiply_widened(struct dev *d, enum gemm_kind kind, const struct tensor *c,
                             const struct tensor *a, const struct tensor *b,
                             bool accumulate)
{
    const int64_t n_a = tensor_count(a), n_b = tensor_count(b);
    const bool narrow = c->dtype == DT_BF16;
    float *f =
        cpu_scratch(d, SLOT_GEMM, (size_t)(n_a + n_b + (narrow ? tensor_count(c) : 0)) * 4);
    if (!f)
        return;
    const struct tensor wide_a = tensor_2d(f, DT_F32, a->dim[0], a->dim[1]);
    const struct tensor wide_b = tensor_2d(f + n_a, DT_F32, b->dim[0], b->dim[1]);
    const struct tensor wide_c = tensor_2d(f + n_a + n_b, DT_F32, c->dim[0], c->dim[1]);
    d->ops.copy(d, &wide_a, a);
    d->ops.copy(d, &wide_b, b);
    multiply(d, kind, narrow ? &wide_c : c, &wide_a, &wide_b, accumulate);
    if (narrow)
        d->ops.copy(d, c, &wide_c);
}

void cpu_gemm(struct dev *d, enum gemm_kind kind, const struct tensor *c,
              const struct tensor *a, const struct tensor *b, bool accumulate)
{
    const struct cpu *cpu = d->priv;
    const double start = clock_s();
    if (a->dtype == DT_BF16 && !cpu->gemm->bf16)
        multiply_widened(d, kind, c, a, b, accumulate);
    else
        multiply(d, kind, c, a, b, accumulate);
    d->gemm_seconds += clock_s() - start;
}
