/* SPDX-License-Identifier: MIT */
#include "tests/calib/calib_fixture.h"

#include "kernels/base/mem.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static enum err stream_open_(void *ctx, const char *name, size_t bytes, bool on_disk,
                             void **out)
{
    struct memory_io *m = ctx;
    m->n_streams++;
    m->open_streams++;
    m->n_on_disk += on_disk;
    return mem_calloc(out, bytes, 1);
}

static void stream_close_(void *ctx, void *p)
{
    ((struct memory_io *)ctx)->open_streams--;
    mem_free(p);
}

static void *copy(const void *from, size_t bytes)
{
    void *to = NULL;
    must(mem_alloc(&to, bytes, 1));
    memcpy(to, from, bytes);
    return to;
}

static void copy_block(struct block_quant *to, const struct block_quant *from)
{
    const size_t C = (size_t)from->n_channels * sizeof(float);
    *to = *from;
    for (int l = 0; l < N_LIN; l++) {
        const struct qlinear *q = &from->lin[l];
        const size_t n = (size_t)(q->out * q->groups);
        if (!q->scales)
            continue;
        to->lin[l].scales = copy(q->scales, n * sizeof(*q->scales));
        to->lin[l].zeros = copy(q->zeros, n);
        if (q->codes)
            to->lin[l].codes = copy(q->codes, (size_t)(q->out * q->in));
    }
    to->k_scale = copy(from->k_scale, C);
    to->k_shift = copy(from->k_shift, C);
    to->v_scale = copy(from->v_scale, C);
    to->v_shift = copy(from->v_shift, C);
}

static void drop_partial(struct memory_io *m)
{
    for (int i = 0; i < m->n_partial; i++)
        mem_free(m->partial[i].t.data);
    m->n_partial = 0;
}

static enum err save_block(void *ctx, int64_t block, const struct block_quant *q,
                           const struct calib_block_stats *stats)
{
    struct memory_io *m = ctx;
    if (block != m->n_blocks || block >= MEMORY_BLOCKS)
        FAIL(ERR_SHAPE, "block saved out of order");
    copy_block(&m->block[block], q);
    m->stats[block] = *stats;
    m->n_blocks++;
    drop_partial(m);
    return OK;
}

static enum err load_block(void *ctx, int64_t block, struct block_quant *q)
{
    copy_block(q, &((struct memory_io *)ctx)->block[block]);
    return OK;
}

static enum err save_partial(void *ctx, int64_t block, const struct named_tensor *t, int n)
{
    struct memory_io *m = ctx;
    assert_true(n <= MEMORY_TENSORS);
    drop_partial(m);
    m->partial_block = block;
    m->n_saves++;
    for (int i = 0; i < n; i++) {
        m->partial[i] = t[i];
        m->partial[i].t.data =
            copy(t[i].t.data, (size_t)tensor_count(&t[i].t) * dtype_bytes(t[i].t.dtype));
    }
    m->n_partial = n;
    return OK;
}

static enum err load_partial(void *ctx, int64_t block, const struct named_tensor **t,
                             int *n)
{
    struct memory_io *m = ctx;
    *t = m->partial;
    *n = block == m->partial_block ? m->n_partial : 0;
    return OK;
}

/* More than the share of a step in any test, less than that of most of a block. */
#define JUMP 0.25

static void event(void *ctx, const struct calib_event *e)
{
    struct memory_io *m = ctx;
    const double own = e->done - e->restored;
    if (!(e->restored >= 0 && own >= m->last_own - 1e-9 && own <= m->last_own + JUMP))
        m->own_jumped = true;
    m->last_own = own;
    /* Parts of passes are added up in another order than those of a whole block. */
    if (!(e->done >= m->last_done - 1e-12 && e->done <= 1 + 1e-9))
        m->done_fell = true;
    m->last_done = e->done;
    m->n_events[e->block][e->kind]++;
    m->n_steps += e->kind == CALIB_STEP;
    m->n_evals += e->kind == CALIB_EVAL;
}

static bool stop(void *ctx)
{
    struct memory_io *m = ctx;
    return ++m->asked == m->stop_after;
}

void memory_io_open(struct memory_io *m)
{
    *m = (struct memory_io){.io = {m, stream_open_, stream_close_, save_block, load_block,
                                   save_partial, load_partial, event, stop}};
}

void memory_io_close(struct memory_io *m)
{
    for (int64_t i = 0; i < m->n_blocks; i++)
        block_quant_free(&m->block[i]);
    drop_partial(m);
}

struct arch tiny_arch(int which, int64_t n_layers)
{
    struct arch a = {.family = ARCH_LLAMA,
                     .model_type = "llama",
                     .n_layers = n_layers,
                     .d_model = 24,
                     .d_ff = 40,
                     .n_heads = 4,
                     .n_kv = 2,
                     .head_dim = 8,
                     .vocab = 50,
                     .max_positions = 64,
                     .norm_eps = 1e-5f,
                     .rope_theta = 10000};
    if (which == 2) {
        a.family = ARCH_GRANITE;
        snprintf(a.model_type, sizeof(a.model_type), "granite");
        a.embed_scale = 2;
        a.attn_scale = 0.25;
        a.residual_scale = 0.5;
        a.logit_scale = 0.75;
        a.rotary_dim = 6;
    }
    if (which == 3) {
        a.family = ARCH_OLMO2;
        snprintf(a.model_type, sizeof(a.model_type), "olmo2");
        a.norms = NORMS_BEHIND;
        a.qk_norm = QK_NORM_ALL;
    }
    if (which == 4) {
        a.family = ARCH_QWEN3_MOE;
        snprintf(a.model_type, sizeof(a.model_type), "qwen3_moe");
        a.qk_norm = QK_NORM_HEAD;
        a.d_ff = 16;
        a.n_experts = 12;
        a.n_active = 2;
        a.norm_active = true;
    }
    if (which == 1) {
        a.family = ARCH_QWEN3;
        snprintf(a.model_type, sizeof(a.model_type), "qwen3");
        a.qk_norm = QK_NORM_HEAD;
        a.qkv_bias = a.mlp_bias = true;
        a.head_dim = 16;
        a.n_kv = 1;
    }
    return a;
}

struct calib_settings tiny_settings(void)
{
    return (struct calib_settings){
        .samples = 3,
        .seqlen = 11,
        .epochs = 2,
        .batch = 1,
        .weights = {WEIGHT_LWC, 4, 16},
        .kv = {.method = KV_CHANNEL_TOKEN,
               .bits = 4,
               .group_size = 128,
               .past_only = true,
               .window = 1,
               .learn = true},
        .crr_blocks = 1,
        .lr_clip = 1e-2f,
        .lr_smooth = 5e-3f,
        .lr_shift = 5e-3f,
        .act = DT_F32,
        .memory_bytes = UINT64_C(1) << 40,
    };
}

void tiny_tokens(int32_t *ids, const struct calib_settings *s, const struct arch *a)
{
    struct rng r;
    rng_seed(&r, 5);
    for (int64_t i = 0; i < s->samples * s->seqlen; i++)
        ids[i] = (int32_t)rng_below(&r, (uint64_t)a->vocab);
}

void stop_and_go(struct memory_io *m, const struct fixture *f,
                 const struct calib_settings *s, int64_t every)
{
    enum err err = ERR_STOPPED;
    int stops = 0;
    memory_io_open(m);
    for (int64_t after = every; err == ERR_STOPPED; after += every) {
        m->asked = 0;
        m->stop_after = after;
        err = run_on("cpu", m, f, s);
        stops += err == ERR_STOPPED;
        assert_false(m->done_fell || m->own_jumped);
        assert_int_equal(m->open_streams, 0);
    }
    must(err);
    assert_true(stops > 0);
}

static bool same_bytes(const void *x, const void *y, size_t n)
{
    return !x == !y && (!x || !memcmp(x, y, n));
}

bool same_block(const struct block_quant *x, const struct block_quant *y)
{
    const size_t C = (size_t)x->n_channels * sizeof(float);
    for (int l = 0; l < N_LIN; l++) {
        const size_t n = (size_t)(x->lin[l].out * x->lin[l].groups);
        if (x->lin[l].out != y->lin[l].out || x->lin[l].groups != y->lin[l].groups ||
            !same_bytes(x->lin[l].scales, y->lin[l].scales, 2 * n) ||
            !same_bytes(x->lin[l].zeros, y->lin[l].zeros, n) ||
            !same_bytes(x->lin[l].codes, y->lin[l].codes,
                        x->lin[l].codes ? (size_t)(x->lin[l].out * x->lin[l].in) : 0))
            return false;
    }
    return same_bytes(x->k_scale, y->k_scale, C) && same_bytes(x->k_shift, y->k_shift, C) &&
           same_bytes(x->v_scale, y->v_scale, C) && same_bytes(x->v_shift, y->v_shift, C);
}

static bool same_stats(const struct calib_block_stats *x, const struct calib_block_stats *y)
{
    return x->start_loss == y->start_loss && x->best_loss == y->best_loss &&
           x->best_epoch == y->best_epoch && x->n_epochs == y->n_epochs &&
           !memcmp(x->unreached, y->unreached, sizeof(x->unreached)) &&
           !memcmp(x->epoch_loss, y->epoch_loss, (size_t)x->n_epochs * sizeof(double));
}

bool same_result(const struct memory_io *x, const struct memory_io *y)
{
    if (x->n_blocks != y->n_blocks)
        return false;
    for (int64_t i = 0; i < x->n_blocks; i++)
        if (!same_block(&x->block[i], &y->block[i]) ||
            !same_stats(&x->stats[i], &y->stats[i]))
            return false;
    return true;
}

void check_same_partial(const struct memory_io *x, const struct memory_io *y)
{
    assert_int_equal(x->n_partial, y->n_partial);
    for (int i = 0; i < x->n_partial; i++) {
        const struct named_tensor *a = &x->partial[i], *b = &y->partial[i];
        const size_t bytes = (size_t)tensor_count(&a->t) * dtype_bytes(a->t.dtype);
        assert_string_equal(a->name, b->name);
        if (strcmp(a->name, "losses")) /* they include seconds */
            assert_memory_equal(a->t.data, b->t.data, bytes);
    }
}

enum err run_on(const char *device, struct memory_io *m, const struct fixture *f,
                const struct calib_settings *s)
{
    int32_t tokens[4096];
    struct dev *d = open_dev(device);
    assert_true(s->samples * s->seqlen <= 4096);
    tiny_tokens(tokens, s, &f->arch);
    err_clear();
    m->last_done = m->last_own = 0;
    const enum err err = calib_run(d, &f->arch, &f->source, s, tokens, m->n_blocks, &m->io);
    dev_close(&d);
    return err;
}

void calibrate(const char *device, struct memory_io *m, const struct fixture *f,
               const struct calib_settings *s)
{
    memory_io_open(m);
    must(run_on(device, m, f, s));
    assert_int_equal(m->n_blocks, f->arch.n_layers);
    assert_int_equal(m->open_streams, 0);
    assert_false(m->done_fell);
    assert_true(fabs(m->last_done - 1) <= 1e-9);
    for (int64_t i = 0; i < m->n_blocks; i++)
        assert_true(m->stats[i].best_loss <= m->stats[i].start_loss);
}
