/* SPDX-License-Identifier: MIT
 *
 * End-to-end refinement of a whole model against PyTorch autograd (tests/golden/gen_refine.py;
 * GOLDEN_REFINE names the folder): the states of every layer, the teacher, both losses, and the
 * gradient of every parameter over a batch of two windows. */
#include "calib/refine/distill.h"
#include "calib/refine/student.h"
#include "convert/checkpoint/safetensors.h"
#include "kernels/base/mem.h"
#include "tests/model/model_fixture.h"

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { LAYERS = 2, WINDOWS = 2, MAX_TOKENS = 16, MAX_PARAMS = 64 };

/* F32 against f64, relative to the golden tensor in the Euclidean norm. Two layers and the head
 * pass sums of at most 30 terms, so errors are a few ulp. The worst that was measured stands beside
 * each bound. A gradient of the cache is the small difference between the direct path and the one
 * straight through a rounding. It holds code - place, whose error is some ulp of 15 while its
 * value is below a half. Losses, in nats, are as exact as the largest logit. */
#define STATE_BOUND 2e-6             /* 5.5e-7 */
#define GRAD_BOUND 5e-6              /* 1.3e-6 */
#define CACHE_BOUND 5e-5             /* 1.2e-5 */
#define LOSS_BOUND (2 * FLT_EPSILON) /* 0.8 ulp */

/* Order of the "config" tensor. */
/* clang-format off */
enum field {
    N_HEADS, N_KV, HEAD_DIM, D_MODEL, D_FF, VOCAB, TOKENS, N_WINDOWS, QKV_BIAS, O_BIAS, MLP_BIAS,
    QK_NORM, TIED, KV_BITS, KV_GROUP, PRE_ROPE, WINDOW, SINK, SCALE_BITS, N_FIELDS
};
/* clang-format on */

/* One parameter of the student under its golden name. */
struct param {
    char name[24];
    struct tensor p, g;
    double bound; /* of the error of g */
};

/* A golden model and its student on a device. */
struct whole {
    struct dev *d;
    struct st_file *file;
    int32_t field[N_FIELDS], formats[LAYERS][N_LIN][2], ids[WINDOWS * MAX_TOKENS];
    float kl, ce;
    struct arch arch;
    struct model_source source;
    struct block_quant layers[LAYERS];
    struct share share;
    struct student st;
    struct distiller head;
    struct tensor teacher[WINDOWS], dx[WINDOWS];
    struct param param[MAX_PARAMS];
    int n_params;
};

/* --- the golden file ---------------------------------------------------------------- */

static const struct st_tensor *find(const struct whole *m, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

static const struct st_tensor *find(const struct whole *m, const char *fmt, ...)
{
    char name[64];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(name, sizeof(name), fmt, ap);
    va_end(ap);
    return st_find(m->file, name);
}

/* Copies a golden tensor that must have so many bytes. */
static void read_into(void *to, size_t bytes, const struct st_tensor *t)
{
    assert_non_null(t);
    assert_int_equal(t->bytes, bytes);
    memcpy(to, t->data, bytes);
}

static struct host_mat mat_of(const struct st_tensor *t)
{
    if (!t)
        return (struct host_mat){0};
    return (struct host_mat){.data = t->data,
                             .dtype = t->dtype,
                             .name = t->name,
                             .rows = t->dim[0],
                             .cols = t->n_dims == 2 ? t->dim[1] : 1};
}

/* host [n], at element `first` of golden tensor t; release with mem_free. */
static float *floats(const struct st_tensor *t, int64_t first, int64_t n)
{
    float *x = NULL;
    assert_non_null(t);
    assert_int_equal(t->dtype, DT_F32);
    assert_true((size_t)(first + n) * sizeof(*x) <= t->bytes);
    must(mem_alloc(&x, (size_t)n, sizeof(*x)));
    memcpy(x, t->data + (size_t)first * sizeof(*x), (size_t)n * sizeof(*x));
    return x;
}

/* As the generator names them. */
static const char *const norm_name[N_BLOCK_GAINS] = {[GAIN_ATTENTION] = "norm1",
                                                     [GAIN_MLP] = "norm2",
                                                     [GAIN_Q] = "q_norm",
                                                     [GAIN_K] = "k_norm",
                                                     [GAIN_ATTENTION_OUT] = "behind1",
                                                     [GAIN_MLP_OUT] = "behind2"};

static enum err golden_block(void *ctx, int64_t i, struct block_src *out)
{
    const struct whole *m = ctx;
    const int b = (int)i;
    *out = (struct block_src){0};
    for (int g = 0; g < N_BLOCK_GAINS; g++)
        out->norm[g] = mat_of(find(m, "%d.%s", b, norm_name[g]));
    out->router = mat_of(find(m, "%d.router", b));
    for (int l = 0; l < N_LIN; l++) {
        out->lin[l] = mat_of(find(m, "%d.%s", b, lin_name[l]));
        out->bias[l] = mat_of(find(m, "%d.b%s", b, lin_name[l]));
    }
    return OK;
}

static enum err golden_ends(void *ctx, struct host_mat *embed, struct host_mat *norm,
                            struct host_mat *head)
{
    const struct whole *m = ctx;
    *embed = mat_of(find(m, "embed"));
    *norm = mat_of(find(m, "norm"));
    *head = m->arch.tied ? *embed : mat_of(find(m, "head"));
    return OK;
}

/* Sliding windows and missing rotary embeddings, by layer. */
static void read_layers(struct whole *m)
{
    float reach[LAYERS], rope[LAYERS];
    read_into(reach, sizeof(reach), find(m, "reach"));
    read_into(rope, sizeof(rope), find(m, "rope"));
    for (int b = 0; b < LAYERS; b++) {
        if (reach[b] > 0) {
            m->arch.sliding_window = (int64_t)reach[b];
            layer_set_add(&m->arch.sliding, b);
        }
        if (!(rope[b] > 0))
            layer_set_add(&m->arch.no_rope, b);
    }
    if (!find(m, "theta"))
        return;
    float theta[LAYERS]; /* of Gemma 3's first layer, which slides */
    read_into(theta, sizeof(theta), find(m, "theta"));
    m->arch.rope_theta_sliding = (double)theta[0];
    m->arch.gain_plus_one = true;
    m->arch.gate = GATE_GELU;
}

static void read_experts(struct arch *a, const struct st_tensor *t)
{
    float of[3];
    read_into(of, sizeof(of), t);
    a->n_experts = (int64_t)of[0];
    a->n_active = (int64_t)of[1];
    a->norm_active = of[2] > 0;
}

static void read_config(struct whole *m)
{
    const int32_t *f = m->field;
    read_into(m->field, sizeof(m->field), find(m, "config"));
    read_into(m->formats, sizeof(m->formats), find(m, "formats"));
    assert_int_equal(f[N_WINDOWS], WINDOWS);
    m->arch = (struct arch){.n_layers = LAYERS,
                            .n_heads = f[N_HEADS],
                            .n_kv = f[N_KV],
                            .head_dim = f[HEAD_DIM],
                            .d_model = f[D_MODEL],
                            .d_ff = f[D_FF],
                            .vocab = f[VOCAB],
                            .max_positions = 64,
                            .norm_eps = 1e-5f,
                            .rope_theta = 10000,
                            .qkv_bias = f[QKV_BIAS],
                            .o_bias = f[O_BIAS],
                            .mlp_bias = f[MLP_BIAS],
                            .norms = !find(m, "0.norm1")    ? NORMS_BEHIND
                                     : find(m, "0.behind1") ? NORMS_AROUND
                                                            : NORMS_BEFORE,
                            .qk_norm = f[QK_NORM],
                            .tied = f[TIED]};
    if (find(m, "experts"))
        read_experts(&m->arch, find(m, "experts"));
    must(arch_check(&m->arch));
    m->source = (struct model_source){.ctx = m, .block = golden_block, .ends = golden_ends};
    assert_true(f[TOKENS] <= MAX_TOKENS);
    read_into(m->ids, (size_t)(WINDOWS * f[TOKENS]) * sizeof(*m->ids), find(m, "ids"));
    float weights[2], factors[4];
    if (find(m, "reach"))
        read_layers(m);
    if (find(m, "factors")) {
        read_into(factors, sizeof(factors), find(m, "factors"));
        m->arch.embed_scale = (double)factors[0];
        m->arch.attn_scale = 1 / (double)factors[1];
        m->arch.residual_scale = (double)factors[2];
        m->arch.logit_scale = (double)factors[3];
    }
    read_into(weights, sizeof(weights), find(m, "weights"));
    m->kl = weights[0];
    m->ce = weights[1];
}

/* --- the student -------------------------------------------------------------------- */

static void read_lin(struct whole *m, struct qlinear *q, int b, int l)
{
    const struct lin_format format = {.bits = m->formats[b][l][0],
                                      .group_size = m->formats[b][l][1],
                                      .scale_bits = m->field[SCALE_BITS]};
    if (format.bits >= 16)
        return;
    must(qlinear_alloc(q, arch_out(&m->arch, l), arch_in(&m->arch, l), format));
    must(qlinear_alloc_codes(q));
    const size_t groups = (size_t)(q->out * q->groups);
    read_into(q->codes, (size_t)(q->out * q->in), find(m, "%d.%s.codes", b, lin_name[l]));
    read_into(q->zeros, groups, find(m, "%d.%s.zeros", b, lin_name[l]));
    read_into(q->scales, groups * sizeof(*q->scales),
              find(m, "%d.%s.scales", b, lin_name[l]));
}

static void read_layer(struct whole *m, int b)
{
    struct block_quant *q = &m->layers[b];
    const int32_t *f = m->field;
    must(block_quant_alloc(q, f[N_KV] * f[HEAD_DIM]));
    q->kv = (struct kv_spec){.method = KV_CHANNEL_TOKEN,
                             .bits = f[KV_BITS],
                             .group_size = f[KV_GROUP],
                             .key_stage = f[PRE_ROPE] ? KEY_PRE_ROPE : KEY_POST_ROPE,
                             .past_only = true,
                             .window = f[WINDOW],
                             .sink = f[SINK],
                             .learn = true};
    for (int l = 0; l < N_LIN; l++)
        read_lin(m, &q->lin[l], b, l);
}

static void add_param(struct whole *m, double bound, struct tensor p, struct tensor g,
                      const char *fmt, ...) __attribute__((format(printf, 5, 6)));

static void add_param(struct whole *m, double bound, struct tensor p, struct tensor g,
                      const char *fmt, ...)
{
    va_list ap;
    assert_true(m->n_params < MAX_PARAMS);
    struct param *x = &m->param[m->n_params];
    if (!p.data)
        return;
    va_start(ap, fmt);
    vsnprintf(x->name, sizeof(x->name), fmt, ap);
    va_end(ap);
    x->p = p;
    x->g = g;
    x->bound = bound;
    m->n_params++;
}

static void list_params(struct whole *m)
{
    for (int b = 0; b < LAYERS; b++) {
        const struct student_layer *y = &m->st.layer[b];
        for (int l = 0; l < N_LIN; l++)
            add_param(m, GRAD_BOUND, y->lin[l].u, y->lin[l].du, "%d.u.%s", b, lin_name[l]);
        for (int g = 0; g < N_BLOCK_GAINS; g++)
            add_param(m, GRAD_BOUND, y->norm[g], y->dnorm[g], "%d.%s", b, norm_name[g]);
        for (int i = 0; i < 2; i++) {
            add_param(m, CACHE_BOUND, y->smooth[i], y->dsmooth[i], "%d.smooth_%c", b,
                      "kv"[i]);
            add_param(m, CACHE_BOUND, y->shift[i], y->dshift[i], "%d.shift_%c", b, "kv"[i]);
        }
    }
    add_param(m, GRAD_BOUND, m->st.final_norm, m->st.dfinal, "norm");
}

/* Moves the student to the golden parameters. All of them, and no others, are golden. */
static void set_params(struct whole *m)
{
    int64_t total = 0;
    int golden = 0;
    list_params(m);
    for (int i = 0; i < m->n_params; i++) {
        const struct st_tensor *t = find(m, "p.%s", m->param[i].name);
        const int64_t n = tensor_count(&m->param[i].p);
        float *x = floats(t, 0, n);
        assert_int_equal(t->bytes, (size_t)n * sizeof(*x));
        must(dev_upload(m->d, m->param[i].p.data, x, t->bytes));
        must(dev_sync(m->d));
        mem_free(x);
        total += n;
    }
    for (int64_t i = 0; i < st_count(m->file); i++)
        golden += !strncmp(st_at(m->file, i)->name, "d.", 2);
    assert_int_equal(golden, m->n_params);
    assert_int_equal(total, m->st.first[N_REFINE_KINDS]);
}

static void whole_open(struct whole *m, const char *device, const char *name, bool keep)
{
    char path[512];
    *m = (struct whole){.d = open_dev(device)};
    snprintf(path, sizeof(path), "%s/refine_%s.safetensors", getenv("GOLDEN_REFINE"), name);
    must(st_open(&m->file, path));
    read_config(m);
    const int64_t T = m->field[TOKENS], D = m->field[D_MODEL];
    const struct refine_settings s = {.seqlen = T,
                                      .batch = WINDOWS,
                                      .scale_bits = m->field[SCALE_BITS],
                                      .head = {.bits = 16},
                                      .act = DT_F32,
                                      .acts_bytes = keep ? UINT64_C(1) << 30 : 0};
    for (int b = 0; b < LAYERS; b++)
        read_layer(m, b);
    must(share_open(&m->share, NULL, WINDOWS, WINDOWS, "refine.batch"));
    must(student_open(&m->st, m->d, &m->arch, &m->source, m->layers, &s, &m->share));
    assert_int_equal(m->st.kept != NULL, keep);
    must(distiller_open(&m->head, m->d, &m->arch, &m->source, &m->source, T, DT_F32));
    for (int i = 0; i < WINDOWS; i++) {
        m->teacher[i] = dev_2d(m->d, DT_F32, T, D);
        m->dx[i] = dev_2d(m->d, DT_F32, T, D);
    }
    set_params(m);
}

static void whole_close(struct whole *m)
{
    for (int i = 0; i < WINDOWS; i++) {
        dev_free(m->d, m->teacher[i].data);
        dev_free(m->d, m->dx[i].data);
    }
    for (int b = 0; b < LAYERS; b++)
        block_quant_free(&m->layers[b]);
    distiller_close(&m->head);
    student_close(&m->st);
    share_close(&m->share);
    st_close(&m->file);
    dev_close(&m->d);
}

/* --- comparisons -------------------------------------------------------------------- */

/* x against golden values from element `first` of t. */
static void compare(const struct whole *m, const struct tensor *x,
                    const struct st_tensor *t, int64_t first, double bound)
{
    const int64_t n = tensor_count(x);
    float *have = to_host(m->d, x), *want = floats(t, first, n);
    const double error = norm_error(have, want, n);
    check_error(t->name, error, bound);
    mem_free(want);
    mem_free(have);
}

/* Takes the full-precision model's last states of a window through its final norm. */
static void keep_state(void *ctx, int64_t window, int64_t block, const float *x)
{
    struct whole *m = ctx;
    const struct tensor *to = &m->teacher[window];
    if (block == LAYERS - 1)
        must(dev_upload(m->d, to->data, x, (size_t)tensor_count(to) * sizeof(*x)));
}

static void make_teacher(struct whole *m)
{
    const struct model_run run = {.dev = m->d,
                                  .arch = &m->arch,
                                  .src = &m->source,
                                  .act = DT_F32,
                                  .hidden = keep_state,
                                  .hidden_ctx = m};
    const int64_t T = m->field[TOKENS], D = m->field[D_MODEL];
    const struct host_mat norm = mat_of(find(m, "norm"));
    const struct tensor gain = tensor_1d(dev_2d(m->d, DT_F32, 1, D).data, DT_F32, D);
    float nll[WINDOWS * MAX_TOKENS];
    must(model_nll(&run, m->ids, WINDOWS, T, nll));
    must(host_gain_upload(m->d, &gain, &norm, &m->arch));
    for (int i = 0; i < WINDOWS; i++) {
        must(model_last(m->d, &m->arch, &m->teacher[i], &m->head.s, &m->teacher[i], &gain));
        compare(m, &m->teacher[i], find(m, "teacher"), i * T * D, STATE_BOUND);
    }
    dev_free(m->d, gain.data);
}

/* Losses of window i, and the gradient of its last state. */
static void check_loss(struct whole *m, int i)
{
    const int64_t T = m->field[TOKENS];
    const struct distill_pair pair = {student_state(&m->st, i, LAYERS), &m->st.final_norm,
                                      &m->teacher[i], m->ids + i * T};
    const struct distill_grads g = {&m->dx[i], &m->st.dfinal, m->kl, m->ce, 1.0f / WINDOWS};
    double loss[2];
    must(distill_loss(&m->head, loss, &pair, &g));
    float *want = floats(find(m, "loss"), 2 * i, 2);
    float *largest = floats(find(m, "largest_logit"), i, 1);
    for (int k = 0; k < 2; k++) {
        check_error(k ? "cross entropy" : "divergence", fabs(loss[k] - (double)want[k]),
                    LOSS_BOUND * (double)*largest);
    }
    mem_free(largest);
    mem_free(want);
}

static void check_states(struct whole *m)
{
    const int64_t T = m->field[TOKENS], n = T * m->field[D_MODEL];
    const int32_t *ids[WINDOWS];
    for (int i = 0; i < WINDOWS; i++)
        ids[i] = m->ids + i * T;
    must(student_forward(&m->st, ids, WINDOWS));
    for (int i = 0; i < WINDOWS; i++)
        for (int b = 0; b < LAYERS; b++)
            compare(m, student_state(&m->st, i, b + 1), find(m, "states"),
                    (i * LAYERS + b) * n, STATE_BOUND);
}

static void check_whole(const char *device, const char *name, bool keep)
{
    struct whole m;
    whole_open(&m, device, name, keep);
    make_teacher(&m);
    check_states(&m);
    for (int i = 0; i < WINDOWS; i++)
        check_loss(&m, i);
    must(student_backward(&m.st, m.dx, WINDOWS));
    for (int i = 0; i < m.n_params; i++)
        compare(&m, &m.param[i].g, find(&m, "d.%s", m.param[i].name), 0, m.param[i].bound);
    whole_close(&m);
}

static void check_devices(const char *name)
{
    for (int keep = 0; keep < 2; keep++) {
        check_whole("cpu", name, keep);
        check_whole("cuda-emu", name, keep);
    }
}

/* Keys after rope; a token's own key is in full precision. */
static void test_grouped_heads(void **state)
{
    (void)state;
    check_devices("gqa");
}

/* Norms of queries and keys, every bias, keys before rope, a window, a sink, mixed formats,
 * scales of seven bits, a tied head. */
static void test_qk_norm_and_mixed_formats(void **state)
{
    (void)state;
    check_devices("qknorm");
}

/* Factors of the embedding, the scores, the residual stream and the logits. */
static void test_factors(void **state)
{
    (void)state;
    check_devices("factors");
}

/* A sliding window in one layer, and no rotary embedding in the other. */
static void test_layers_that_differ(void **state)
{
    (void)state;
    check_devices("layers");
}

/* Norms around attention and the MLP, which multiply by 1 + their weight, GELU, and a rope of its
 * own in the layer with a sliding window. */
static void test_norms_around(void **state)
{
    (void)state;
    check_devices("around");
}

/* Norms behind attention and the MLP, and norms of all heads of a token together. */
static void test_norms_behind(void **state)
{
    (void)state;
    check_devices("behind");
}

/* Experts whose weights are divided by their sum, and a router, which does not learn. */
static void test_experts(void **state)
{
    (void)state;
    check_devices("experts");
}

/* The same with undivided weights; most experts get no token, so their scales no gradient. */
static void test_experts_without_tokens(void **state)
{
    (void)state;
    check_devices("experts_plain");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grouped_heads),
        cmocka_unit_test(test_qk_norm_and_mixed_formats),
        cmocka_unit_test(test_factors),
        cmocka_unit_test(test_layers_that_differ),
        cmocka_unit_test(test_norms_behind),
        cmocka_unit_test(test_norms_around),
        cmocka_unit_test(test_experts),
        cmocka_unit_test(test_experts_without_tokens),
    };
    if (!getenv("GOLDEN_REFINE"))
        return 77;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
