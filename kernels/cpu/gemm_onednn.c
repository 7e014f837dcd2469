/* SPDX-License-Identifier: MIT
 *
 * Products by oneDNN's matmul, above all BF16 x BF16 -> F32 or BF16. A primitive belongs to
 * one shape and is kept; its memory objects are one set a thread, so that a call allocates
 * nothing. */
#include "kernels/cpu/gemm.h"

#include "config.h"
#include "kernels/base/mem.h"

#include <stdio.h>

#if HAVE_ONEDNN
#include <dlfcn.h>
#include <dnnl.h>
#include <string.h>

#define MAX_KERNELS 512

enum { ARG_A, ARG_B, ARG_C, ARG_SCRATCH, N_ARGS };

struct onednn_kernel {
    struct gemm_tile tile;
    struct onednn *owner;
    dnnl_primitive_t primitive;
    dnnl_memory_t (*memory)[N_ARGS]; /* [threads] */
};

struct onednn {
    dnnl_engine_t engine;
    dnnl_stream_t *stream; /* [threads] */
    void (*omp_set_num_threads)(int);
    int threads, n_kernels, next; /* next: whom a new shape replaces when all are taken */
    struct onednn_kernel kernel[MAX_KERNELS];
    void **scratch; /* [threads]: working memory of the hungriest kernel */
    size_t scratch_bytes;
};

static void kernel_clear(struct onednn_kernel *k)
{
    for (int t = 0; k->memory && t < k->owner->threads; t++)
        for (int i = 0; i < N_ARGS; i++)
            if (k->memory[t][i])
                dnnl_memory_destroy(k->memory[t][i]);
    mem_free(k->memory);
    if (k->primitive)
        dnnl_primitive_destroy(k->primitive);
    *k = (struct onednn_kernel){0};
}

enum err onednn_open(struct onednn **out, int threads)
{
    struct onednn *o = NULL;
    enum err err = OK;
    TRY(mem_calloc(&o, 1, sizeof(*o)));
    o->threads = threads;
    void *omp = dlsym(RTLD_DEFAULT, "omp_set_num_threads");
    memcpy(&o->omp_set_num_threads, &omp, sizeof(omp));
    TRY_OUT(mem_calloc(&o->stream, (size_t)threads, sizeof(dnnl_stream_t)));
    TRY_OUT(mem_calloc(&o->scratch, (size_t)threads, sizeof(void *)));
    if (dnnl_engine_create(&o->engine, dnnl_cpu, 0))
        FAIL_OUT(ERR_SUPPORT, "oneDNN has no CPU engine here");
    for (int t = 0; t < threads; t++)
        if (dnnl_stream_create(&o->stream[t], o->engine, dnnl_stream_default_flags))
            FAIL_OUT(ERR_MEMORY, "oneDNN cannot make a stream");
    *out = o;
    return OK;
out:
    onednn_close(&o);
    return err;
}

void onednn_close(struct onednn **po)
{
    struct onednn *o = *po;
    if (!o)
        return;
    for (int i = 0; i < o->n_kernels; i++)
        kernel_clear(&o->kernel[i]);
    for (int t = 0; t < o->threads; t++) {
        if (o->stream && o->stream[t])
            dnnl_stream_destroy(o->stream[t]);
        if (o->scratch)
            mem_free(o->scratch[t]);
    }
    if (o->engine)
        dnnl_engine_destroy(o->engine);
    mem_free(o->stream);
    mem_free(o->scratch);
    mem_free(o);
    *po = NULL;
}

static dnnl_data_type_t type_of(enum dtype t)
{
    return t == DT_BF16 ? dnnl_bf16 : dnnl_f32;
}

/* A [rows, cols] whose element (r, c) is at r * row + c * col. */
static bool describe(dnnl_memory_desc_t *md, enum dtype t, int64_t rows, int64_t cols,
                     int64_t row, int64_t col)
{
    const dnnl_dims_t dims = {rows, cols}, strides = {row, col};
    return !dnnl_memory_desc_init_by_strides(md, 2, dims, type_of(t), strides);
}

static bool make_memories(struct onednn *o, struct onednn_kernel *k,
                          const dnnl_memory_desc_t *const md[N_ARGS])
{
    if (mem_calloc(&k->memory, (size_t)o->threads, sizeof(*k->memory)))
        return false;
    for (int t = 0; t < o->threads; t++)
        for (int i = 0; i < N_ARGS; i++)
            if (dnnl_memory_create(&k->memory[t][i], md[i], o->engine, DNNL_MEMORY_NONE))
                return false;
    return true;
}

static bool grow_scratch(struct onednn *o, size_t bytes)
{
    if (bytes <= o->scratch_bytes)
        return true;
    o->scratch_bytes = 0;
    for (int t = 0; t < o->threads; t++) {
        mem_free(o->scratch[t]);
        o->scratch[t] = NULL;
        if (mem_alloc(&o->scratch[t], bytes, 1))
            return false;
    }
    o->scratch_bytes = bytes;
    return true;
}

static bool make_attr(dnnl_primitive_attr_t *attr, const struct gemm_tile *t)
{
    dnnl_post_ops_t ops = NULL;
    bool ok = !dnnl_primitive_attr_create(attr) &&
              !dnnl_primitive_attr_set_scratchpad_mode(*attr, dnnl_scratchpad_mode_user);
    if (ok && t->accumulate) {
        ok = !dnnl_post_ops_create(&ops) && !dnnl_post_ops_append_sum(ops, 1.0f) &&
             !dnnl_primitive_attr_set_post_ops(*attr, ops);
        if (ops)
            dnnl_post_ops_destroy(ops);
    }
    return ok;
}

static bool kernel_make(struct onednn *o, struct onednn_kernel *k)
{
    const struct gemm_tile *t = &k->tile;
    const bool ta = t->kind == GEMM_TN, tb = t->kind == GEMM_NT;
    dnnl_memory_desc_t a, b, c;
    dnnl_matmul_desc_t matmul;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_primitive_desc_t desc = NULL;
    bool ok = describe(&a, t->in, t->m, t->k, ta ? 1 : t->lda, ta ? t->lda : 1) &&
              describe(&b, t->in, t->k, t->n, tb ? 1 : t->ldb, tb ? t->ldb : 1) &&
              describe(&c, t->out, t->m, t->n, t->ldc, 1) && make_attr(&attr, t) &&
              !dnnl_matmul_desc_init(&matmul, &a, &b, NULL, &c) &&
              !dnnl_primitive_desc_create(&desc, &matmul, attr, o->engine, NULL) &&
              !dnnl_primitive_create(&k->primitive, desc);
    if (ok) {
        const dnnl_memory_desc_t *scratch =
            dnnl_primitive_desc_query_md(desc, dnnl_query_scratchpad_md, 0);
        const dnnl_memory_desc_t *const md[N_ARGS] = {&a, &b, &c, scratch};
        ok = make_memories(o, k, md) && grow_scratch(o, dnnl_memory_desc_get_size(scratch));
    }
    if (desc)
        dnnl_primitive_desc_destroy(desc);
    if (attr)
        dnnl_primitive_attr_destroy(attr);
    return ok;
}

static bool same_tile(const struct gemm_tile *a, const struct gemm_tile *b)
{
    return a->kind == b->kind && a->m == b->m && a->n == b->n && a->k == b->k &&
           a->lda == b->lda && a->ldb == b->ldb && a->ldc == b->ldc && a->in == b->in &&
           a->out == b->out && a->accumulate == b->accumulate;
}

struct onednn_kernel *onednn_find(struct onednn *o, const struct gemm_tile *t)
{
    for (int i = 0; i < o->n_kernels; i++)
        if (same_tile(&o->kernel[i].tile, t))
            return &o->kernel[i];
    /* Primitives ask how many threads they will have when they are made. */
    if (o->omp_set_num_threads)
        o->omp_set_num_threads(1);
    struct onednn_kernel *k = &o->kernel[o->next];
    if (o->n_kernels < MAX_KERNELS)
        o->n_kernels++;
    else
        kernel_clear(k);
    o->next = (o->next + 1) % MAX_KERNELS;
    *k = (struct onednn_kernel){.tile = *t, .owner = o};
    if (kernel_make(o, k))
        return k;
    kernel_clear(k);
    k->owner = o;
    return NULL;
}

bool onednn_run(struct onednn_kernel *k, int thread, const void *a, const void *b, void *c)
{
    struct onednn *o = k->owner;
    dnnl_memory_t *m = k->memory[thread];
    if (o->omp_set_num_threads)
        o->omp_set_num_threads(1);
    const dnnl_exec_arg_t args[N_ARGS] = {{DNNL_ARG_SRC, m[ARG_A]},
                                          {DNNL_ARG_WEIGHTS, m[ARG_B]},
                                          {DNNL_ARG_DST, m[ARG_C]},
                                          {DNNL_ARG_SCRATCHPAD, m[ARG_SCRATCH]}};
    return !dnnl_memory_set_data_handle(m[ARG_A], (void *)a) &&
           !dnnl_memory_set_data_handle(m[ARG_B], (void *)b) &&
           !dnnl_memory_set_data_handle(m[ARG_C], c) &&
           !dnnl_memory_set_data_handle(m[ARG_SCRATCH], o->scratch[thread]) &&
           !dnnl_primitive_execute(k->primitive, o->stream[thread], N_ARGS, args) &&
           !dnnl_stream_wait(o->stream[thread]);
}

void onednn_version(char *text, size_t bytes)
{
    const dnnl_version_t *v = dnnl_version();
    snprintf(text, bytes, "%d.%d.%d", v->major, v->minor, v->patch);
}

#else

enum err onednn_open(struct onednn **out, int threads)
{
    FAIL(ERR_SUPPORT, "built without oneDNN");
}

void onednn_close(struct onednn **o)
{
}

struct onednn_kernel *onednn_find(struct onednn *o, const struct gemm_tile *t)
{
    return NULL;
}

bool onednn_run(struct onednn_kernel *k, int thread, const void *a, const void *b, void *c)
{
    return false;
}

void onednn_version(char *text, size_t bytes)
{
    snprintf(text, bytes, "none");
}

#endif
