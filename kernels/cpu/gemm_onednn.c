/* SPDX-License-Identifier: MIT
 *
 * Products by oneDNN's matmul, mainly BF16 x BF16 -> F32 or BF16. A primitive is prepared
 * for one shape and cached. It has one set of memory objects per thread, so that a call
 * does not allocate. */
#include "kernels/cpu/gemm.h"

#include "config.h"
#include "kernels/base/limits.h"
#include "kernels/base/mem.h"

#include <stdio.h>

#if HAVE_ONEDNN
#include "kernels/cpu/onednn_api.h"

#include <dlfcn.h>
#include <string.h>
#include <sys/mman.h>

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
    int threads, n_kernels;
    int next; /* the entry that a new shape replaces when the cache is full */
    struct onednn_kernel kernel[MAX_KERNELS];
    void **scratch; /* [threads]: working memory, large enough for every kernel */
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

struct opening {
    struct onednn *o;
    enum err err;
};

static enum err make_streams(struct onednn *o)
{
    FAIL_IF(dnnl_engine_create(&o->engine, dnnl_cpu, 0), ERR_SUPPORT,
            "oneDNN has no CPU engine here");
    for (int t = 0; t < o->threads; t++)
        FAIL_IF(dnnl_stream_create(&o->stream[t], o->engine, dnnl_stream_default_flags),
                ERR_MEMORY, "oneDNN cannot make a stream");
    return OK;
}

static void open_guarded(void *ctx)
{
    struct opening *x = ctx;
    x->err = make_streams(x->o);
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
    struct opening x = {.o = o};
    if (!gemm_guarded(open_guarded, &x))
        FAIL_OUT(ERR_MEMORY, "out of memory in oneDNN");
    TRY_OUT(x.err);
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

/* Describes a matrix [rows, cols] whose element (r, c) is at r * row + c * col. */
static dnnl_status_t describe(dnnl_memory_desc_t *md, enum dtype t, int64_t rows,
                              int64_t cols, int64_t row, int64_t col)
{
    const dnnl_dims_t dims = {rows, cols}, strides = {row, col};
    return onednn_describe(md, dims, type_of(t), strides);
}

static enum err make_memories(struct onednn *o, struct onednn_kernel *k,
                              const onednn_desc_ref md[N_ARGS])
{
    TRY(mem_calloc(&k->memory, (size_t)o->threads, sizeof(*k->memory)));
    for (int t = 0; t < o->threads; t++)
        for (int i = 0; i < N_ARGS; i++)
            FAIL_IF(
                dnnl_memory_create(&k->memory[t][i], md[i], o->engine, DNNL_MEMORY_NONE),
                ERR_MEMORY, "oneDNN cannot make a memory object");
    return OK;
}

/* On failure, existing primitives keep their old, smaller working memory. */
static enum err grow_scratch(struct onednn *o, size_t bytes)
{
    if (bytes <= o->scratch_bytes)
        return OK;
    for (int t = 0; t < o->threads; t++) {
        void *more = NULL;
        TRY(mem_alloc(&more, bytes, 1));
        mem_free(o->scratch[t]);
        o->scratch[t] = more;
    }
    o->scratch_bytes = bytes;
    return OK;
}

static dnnl_status_t make_attr(dnnl_primitive_attr_t *attr, const struct gemm_tile *t)
{
    dnnl_post_ops_t ops = NULL;
    dnnl_status_t s = dnnl_primitive_attr_create(attr);
    if (!s)
        s = dnnl_primitive_attr_set_scratchpad_mode(*attr, dnnl_scratchpad_mode_user);
    if (s || !t->accumulate)
        return s;
    if (!(s = dnnl_post_ops_create(&ops)) && !(s = onednn_append_sum(ops)))
        s = dnnl_primitive_attr_set_post_ops(*attr, ops);
    if (ops)
        dnnl_post_ops_destroy(ops);
    return s;
}

struct recipe_of_kernel {
    dnnl_memory_desc_t a, b, c;
    dnnl_primitive_attr_t attr;
    dnnl_primitive_desc_t desc;
};

/* Of a single row, the distance to the next is free. One of 1 made oneDNN 3.7 read what lies
 * between the row's elements, which may not be numbers. */
static dnnl_status_t make_primitive(struct recipe_of_kernel *r, struct onednn_kernel *k,
                                    dnnl_engine_t engine)
{
    const struct gemm_tile *t = &k->tile;
    const bool ta = t->kind == GEMM_TN, tb = t->kind == GEMM_NT;
    const int64_t row = !ta ? t->lda : t->m > 1 ? 1 : t->lda * t->k;
    dnnl_status_t s = describe(&r->a, t->in, t->m, t->k, row, ta ? t->lda : 1);
    if (!s)
        s = describe(&r->b, t->in, t->k, t->n, tb ? 1 : t->ldb, tb ? t->ldb : 1);
    if (!s)
        s = describe(&r->c, t->out, t->m, t->n, t->ldc, 1);
    if (!s)
        s = make_attr(&r->attr, t);
    if (!s)
        s = onednn_matmul(&r->desc, engine, &r->a, &r->b, &r->c, r->attr);
    return s ? s : dnnl_primitive_create(&k->primitive, r->desc);
}

/* *made is set to true if oneDNN has such a product. */
static enum err make_kernel(bool *made, struct onednn *o, struct onednn_kernel *k)
{
    struct recipe_of_kernel r = {.attr = NULL};
    const dnnl_status_t s = make_primitive(&r, k, o->engine);
    enum err err = OK;
    *made = !s;
    if (s == dnnl_out_of_memory) {
        err = err_set(ERR_MEMORY, __FILE__, __LINE__, "oneDNN is out of memory");
    } else if (!s) {
        const onednn_desc_ref scratch =
            dnnl_primitive_desc_query_md(r.desc, dnnl_query_scratchpad_md, 0);
        const onednn_desc_ref md[N_ARGS] = {onednn_desc_of(&r.a), onednn_desc_of(&r.b),
                                            onednn_desc_of(&r.c), scratch};
        err = make_memories(o, k, md);
        if (!err)
            err = grow_scratch(o, dnnl_memory_desc_get_size(scratch));
    }
    if (r.desc)
        dnnl_primitive_desc_destroy(r.desc);
    if (r.attr)
        dnnl_primitive_attr_destroy(r.attr);
    onednn_desc_drop(&r.a);
    onednn_desc_drop(&r.b);
    onednn_desc_drop(&r.c);
    return err;
}

struct kernel_making {
    struct onednn *o;
    struct onednn_kernel *k;
    bool made;
    enum err err;
};

static void make_guarded(void *ctx)
{
    struct kernel_making *x = ctx;
    x->err = make_kernel(&x->made, x->o, x->k);
}

/* oneDNN 2.6.3 writes machine code into memory that it does not check: a kernel whose code
 * buffers cannot be mapped would crash. They stay well below this many bytes. */
#define CODE_ROOM ((size_t)32 << 20)

static enum err check_code_room(void)
{
    void *room =
        mmap(NULL, CODE_ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (room != MAP_FAILED) {
        munmap(room, CODE_ROOM);
        return OK;
    }
    struct limit l;
    limits_address_space(&l, "");
    FAIL(ERR_MEMORY,
         "oneDNN needs %zu MB of address space for a bf16 kernel (limit: %s); raise the "
         "limit, or use --set run.compute=f32",
         CODE_ROOM >> 20, l.name);
}

static enum err kernel_make(bool *made, struct onednn *o, struct onednn_kernel *k)
{
    struct kernel_making x = {.o = o, .k = k};
    TRY(check_code_room());
    FAIL_IF(!gemm_guarded(make_guarded, &x), ERR_MEMORY, "out of memory in oneDNN");
    *made = x.made;
    return x.err;
}

static bool same_tile(const struct gemm_tile *a, const struct gemm_tile *b)
{
    return a->kind == b->kind && a->m == b->m && a->n == b->n && a->k == b->k &&
           a->lda == b->lda && a->ldb == b->ldb && a->ldc == b->ldc && a->in == b->in &&
           a->out == b->out && a->accumulate == b->accumulate;
}

static struct onednn_kernel *cached(struct onednn *o, const struct gemm_tile *t)
{
    for (int i = 0; i < o->n_kernels; i++)
        if (same_tile(&o->kernel[i].tile, t))
            return &o->kernel[i];
    return NULL;
}

static bool is_among(struct onednn_kernel *const *held, int n,
                     const struct onednn_kernel *k)
{
    for (int i = 0; i < n; i++)
        if (held[i] == k)
            return true;
    return false;
}

/* Returns an entry that none of held[n] is: an unused one, or the oldest one, emptied. */
static struct onednn_kernel *free_entry(struct onednn *o, struct onednn_kernel *const *held,
                                        int n)
{
    while (is_among(held, n, &o->kernel[o->next]))
        o->next = (o->next + 1) % MAX_KERNELS;
    struct onednn_kernel *k = &o->kernel[o->next];
    if (o->n_kernels < MAX_KERNELS)
        o->n_kernels++;
    else
        kernel_clear(k);
    o->next = (o->next + 1) % MAX_KERNELS;
    return k;
}

/* *out = a new kernel in entry k, or NULL if oneDNN has none. */
static enum err fill_entry(struct onednn_kernel **out, struct onednn *o,
                           struct onednn_kernel *k, const struct gemm_tile *t)
{
    bool made = false;
    /* A primitive fixes its number of threads when it is made. */
    if (o->omp_set_num_threads)
        o->omp_set_num_threads(1);
    *k = (struct onednn_kernel){.tile = *t, .owner = o};
    const enum err err = kernel_make(&made, o, k);
    *out = k;
    if (err || !made) {
        kernel_clear(k);
        k->owner = o;
        *out = NULL;
    }
    return err;
}

enum err onednn_find(struct onednn_kernel **out, struct onednn *o,
                     const struct gemm_tile *t, int n)
{
    /* All that are there come first, so that no new one takes the place of one of them. */
    for (int i = 0; i < n; i++)
        out[i] = t[i].m && t[i].n ? cached(o, &t[i]) : NULL;
    for (int i = 0; i < n; i++)
        if (t[i].m && t[i].n && !out[i])
            TRY(fill_entry(&out[i], o, free_entry(o, out, n), &t[i]));
    return OK;
}

static bool run(struct onednn_kernel *k, int thread, const void *a, const void *b, void *c)
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

struct running {
    struct onednn_kernel *k;
    int thread;
    const void *a, *b;
    void *c;
    bool ok;
};

static void run_guarded(void *ctx)
{
    struct running *x = ctx;
    x->ok = run(x->k, x->thread, x->a, x->b, x->c);
}

bool onednn_run(struct onednn_kernel *k, int thread, const void *a, const void *b, void *c)
{
    struct running x = {k, thread, a, b, c, false};
    return gemm_guarded(run_guarded, &x) && x.ok;
}

bool onednn_has_tiles(void)
{
    /* Each bit of a set stands for an extension, so newer sets contain these bits as well. */
    const unsigned amx = dnnl_cpu_isa_avx512_core_amx;
    return ((unsigned)dnnl_get_effective_cpu_isa() & amx) == amx;
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

enum err onednn_find(struct onednn_kernel **out, struct onednn *o,
                     const struct gemm_tile *t, int n)
{
    for (int i = 0; i < n; i++)
        out[i] = NULL;
    return OK;
}

bool onednn_run(struct onednn_kernel *k, int thread, const void *a, const void *b, void *c)
{
    return false;
}

bool onednn_has_tiles(void)
{
    return false;
}

void onednn_version(char *text, size_t bytes)
{
    snprintf(text, bytes, "none");
}

#endif
