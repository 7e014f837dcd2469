/* SPDX-License-Identifier: MIT
 *
 * One whole calibration step against PyTorch autograd (tests/golden/gen_block.py): clipped
 * weights, fake-quantized KV, past-only attention, a full-precision block after it, the
 * loss, and the gradient of every learnable parameter. */
#include "convert/checkpoint/safetensors.h"
#include "kernels/base/mem.h"
#include "tests/model/model_fixture.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static const char *golden_dir;

/* F32 against f64: a gradient has passed two blocks, with sums of at most 40 terms.
 * Measured worst 3e-6; a wrong term is of order 1. */
#define TOLERANCE 2e-5

/* Order of the "config" tensor. */
/* clang-format off */
enum field {
    N_HEADS, N_KV, HEAD_DIM, D_MODEL, D_FF, TOKENS, QKV_BIAS, O_BIAS, QK_NORM, W_BITS, W_GROUP,
    KV_BITS, KV_GROUP, PRE_ROPE, PAST_ONLY, WINDOW, SINK, MSE, N_FIELDS
};
/* clang-format on */

/* One golden file and the step's state on a device. */
struct step {
    struct dev *d;
    struct st_file *file;
    int32_t field[N_FIELDS];
    struct arch arch;
    struct block_weights master, w0, w1; /* F32 weights, fake-quantized, the next block */
    struct block_kv kv;
    struct block_acts acts0, acts1;
    struct block_scratch *scratch;
    struct tensor cos, sin;
    struct tensor a[N_LIN], b[N_LIN];
    struct block_grads grads;
    struct tensor x, target, out0, out1, dout;
};

static const struct st_tensor *find(const struct step *s, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

static const struct st_tensor *find(const struct step *s, const char *fmt, ...)
{
    char name[64];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(name, sizeof(name), fmt, ap);
    va_end(ap);
    return st_find(s->file, name);
}

static int64_t elements(const struct st_tensor *t)
{
    return (int64_t)(t->bytes / sizeof(float));
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

/* A golden tensor on the device. */
static struct tensor load(const struct step *s, const char *name)
{
    const struct st_tensor *t = st_find(s->file, name);
    assert_non_null(t);
    const struct host_mat m = mat_of(t);
    struct tensor x = dev_2d(s->d, DT_F32, m.rows, m.cols);
    must(host_mat_upload(s->d, &x, &m));
    return t->n_dims == 1 ? tensor_1d(x.data, DT_F32, m.rows) : x;
}

static void compare(const struct step *s, const struct tensor *got, const char *name)
{
    const struct st_tensor *t = st_find(s->file, name);
    assert_non_null(t);
    float *want = NULL, *have = to_host(s->d, got);
    assert_int_equal(tensor_count(got), elements(t));
    must(mem_alloc(&want, t->bytes, 1));
    memcpy(want, t->data, t->bytes);
    check_error(name, max_error(have, want, elements(t)), TOLERANCE);
    mem_free(want);
    mem_free(have);
}

static struct block_src source_of(const struct step *s, int i)
{
    struct block_src b = {0};
    b.norm[GAIN_ATTENTION] = mat_of(find(s, "block%d.norm1", i));
    b.norm[GAIN_MLP] = mat_of(find(s, "block%d.norm2", i));
    for (int l = 0; l < N_LIN; l++) {
        b.lin[l] = mat_of(find(s, "block%d.%s", i, lin_name[l]));
        b.bias[l] = mat_of(find(s, "block%d.b%s", i, lin_name[l]));
    }
    b.norm[GAIN_Q] = mat_of(find(s, "block%d.q_norm", i));
    b.norm[GAIN_K] = mat_of(find(s, "block%d.k_norm", i));
    return b;
}

static void read_config(struct step *s)
{
    const struct st_tensor *t = st_find(s->file, "config");
    assert_non_null(t);
    assert_int_equal(t->bytes, sizeof(s->field));
    memcpy(s->field, t->data, sizeof(s->field));
    const int32_t *f = s->field;
    s->arch = (struct arch){.n_layers = 2,
                            .n_heads = f[N_HEADS],
                            .n_kv = f[N_KV],
                            .head_dim = f[HEAD_DIM],
                            .d_model = f[D_MODEL],
                            .d_ff = f[D_FF],
                            .vocab = 1,
                            .max_positions = 64,
                            .norm_eps = 1e-5f,
                            .rope_theta = 10000,
                            .qkv_bias = f[QKV_BIAS],
                            .o_bias = f[O_BIAS],
                            .qk_norm = f[QK_NORM]};
    must(arch_check(&s->arch));
    s->kv.spec = (struct kv_spec){.method = KV_CHANNEL_TOKEN,
                                  .bits = f[KV_BITS],
                                  .group_size = f[KV_GROUP],
                                  .key_stage = f[PRE_ROPE] ? KEY_PRE_ROPE : KEY_POST_ROPE,
                                  .past_only = f[PAST_ONLY],
                                  .window = f[WINDOW],
                                  .sink = f[SINK],
                                  .learn = true};
}

/* exp of a golden log s. */
static struct tensor load_exp(const struct step *s, const char *name)
{
    const struct tensor ls = load(s, name);
    must(dev_exp(s->d, &ls, &ls));
    return ls;
}

static void load_params(struct step *s)
{
    for (int l = 0; l < N_LIN; l++) {
        char name[16];
        snprintf(name, sizeof(name), "a.%s", lin_name[l]);
        s->a[l] = load(s, name);
        name[0] = 'b';
        s->b[l] = load(s, name);
    }
    s->kv.k_s = load_exp(s, "k_ls");
    s->kv.v_s = load_exp(s, "v_ls");
    s->kv.k_shift = load(s, "k_delta");
    s->kv.v_shift = load(s, "v_delta");
}

static void alloc_grads(struct step *s)
{
    struct block_grads *g = &s->grads;
    const struct block_weights *w = &s->master;
    g->dwqkv = dev_2d(s->d, DT_F32, w->wqkv.dim[0], w->wqkv.dim[1]);
    g->dwo = dev_2d(s->d, DT_F32, w->wo.dim[0], w->wo.dim[1]);
    g->dwgu = dev_2d(s->d, DT_F32, w->wgu.dim[0], w->wgu.dim[1]);
    g->dwdown = dev_2d(s->d, DT_F32, w->wdown.dim[0], w->wdown.dim[1]);
    struct tensor *const kv[] = {&g->k_dls, &g->k_dshift, &g->v_dls, &g->v_dshift};
    for (int i = 0; i < 4; i++)
        *kv[i] = load(s, "k_ls"); /* right shape; must be overwritten */
}

static void step_open(struct step *s, const char *device, const char *name)
{
    char path[512];
    *s = (struct step){.d = open_dev(device)};
    snprintf(path, sizeof(path), "%s/block_%s.safetensors", golden_dir, name);
    must(st_open(&s->file, path));
    read_config(s);
    const struct arch *a = &s->arch;
    const int64_t T = s->field[TOKENS], D = a->d_model;
    const struct block_src src[2] = {source_of(s, 0), source_of(s, 1)};
    struct block_weights *const w[] = {&s->master, &s->w0, &s->w1};
    for (int i = 0; i < 3; i++) {
        must(block_weights_alloc(w[i], s->d, a, DT_F32));
        must(block_weights_load(w[i], a, i == 2, &src[i == 2]));
    }
    must(block_acts_alloc(&s->acts0, s->d, a, T, DT_F32, &s->kv.spec));
    must(block_acts_alloc(&s->acts1, s->d, a, T, DT_F32, NULL));
    must(block_scratch_open(&s->scratch, s->d, a, T, DT_F32));
    must(block_rope_alloc(&s->cos, &s->sin, s->d, a, T));
    s->acts0.cos = s->acts1.cos = s->cos;
    s->acts0.sin = s->acts1.sin = s->sin;
    load_params(s);
    alloc_grads(s);
    s->x = load(s, "x");
    s->target = load(s, "target");
    s->out0 = dev_2d(s->d, DT_F32, T, D);
    s->out1 = dev_2d(s->d, DT_F32, T, D);
    s->dout = dev_2d(s->d, DT_F32, T, D);
}

static void step_close(struct step *s)
{
    struct block_grads *g = &s->grads;
    const struct tensor *const all[] = {
        &s->kv.k_s, &s->kv.k_shift, &s->kv.v_s, &s->kv.v_shift, &g->dwqkv, &g->dwo,
        &g->dwgu,   &g->dwdown,     &g->k_dls,  &g->k_dshift,   &g->v_dls, &g->v_dshift,
        &s->x,      &s->target,     &s->out0,   &s->out1,       &s->dout,  &s->cos};
    for (size_t i = 0; i < ARRAY_LEN(all); i++)
        dev_free(s->d, all[i]->data);
    for (int l = 0; l < N_LIN; l++) {
        dev_free(s->d, s->a[l].data);
        dev_free(s->d, s->b[l].data);
    }
    block_weights_free(&s->master);
    block_weights_free(&s->w0);
    block_weights_free(&s->w1);
    block_acts_free(&s->acts0);
    block_acts_free(&s->acts1);
    block_scratch_close(&s->scratch);
    st_close(&s->file);
    dev_close(&s->d);
}

/* Writes w^ of every projection to its place in w0. back: writes the gradients of a and b
 * over a and b. */
static void weights_quantize(struct step *s)
{
    for (int l = 0; l < N_LIN; l++) {
        const struct tensor w = block_weights_lin(&s->master, &s->arch, l);
        const struct tensor wq = block_weights_lin(&s->w0, &s->arch, l);
        const int64_t out = s->a[l].dim[0], n = s->a[l].dim[1];
        const struct tensor scales = dev_2d(s->d, DT_F16, out, n);
        const struct tensor zeros = dev_2d(s->d, DT_U8, out, n);
        must(dev_fake_quant_weights(
            s->d, &wq, &scales, &zeros,
            &(struct weight_quant){.w = &w,
                                   .a = &s->a[l],
                                   .b = &s->b[l],
                                   .bits = s->field[W_BITS],
                                   .group_size = s->field[W_GROUP]}));
        dev_free(s->d, scales.data);
        dev_free(s->d, zeros.data);
    }
}

static void compare_clip(struct step *s)
{
    const struct block_weights dw = {.wqkv = s->grads.dwqkv,
                                     .wo = s->grads.dwo,
                                     .wgu = s->grads.dwgu,
                                     .wdown = s->grads.dwdown};
    for (int l = 0; l < N_LIN; l++) {
        const struct tensor w = block_weights_lin(&s->master, &s->arch, l);
        const struct tensor dwq = block_weights_lin(&dw, &s->arch, l);
        const struct tensor da = dev_2d(s->d, DT_F32, s->a[l].dim[0], s->a[l].dim[1]);
        const struct tensor db = dev_2d(s->d, DT_F32, s->a[l].dim[0], s->a[l].dim[1]);
        must(dev_fake_quant_weights_bwd(
            s->d, &da, &db, &dwq,
            &(struct weight_quant){.w = &w,
                                   .a = &s->a[l],
                                   .b = &s->b[l],
                                   .bits = s->field[W_BITS],
                                   .group_size = s->field[W_GROUP]}));
        char name[16];
        snprintf(name, sizeof(name), "d.a.%s", lin_name[l]);
        compare(s, &da, name);
        name[2] = 'b';
        compare(s, &db, name);
        dev_free(s->d, da.data);
        dev_free(s->d, db.data);
    }
}

static void step_forward(struct step *s, double *loss)
{
    weights_quantize(s);
    must(block_forward(&s->acts0, s->scratch, &s->arch, &s->w0, &s->kv, &s->out0, &s->x));
    must(block_forward(&s->acts1, s->scratch, &s->arch, &s->w1, NULL, &s->out1, &s->out0));
    const struct loss_inputs in = {.y = &s->out1,
                                   .t = &s->target,
                                   .kind = s->field[MSE] ? LOSS_MSE : LOSS_MAE,
                                   .weight = 1};
    must(dev_loss(s->d, loss, &s->dout, &in));
}

static void step_backward(struct step *s)
{
    must(block_backward(&s->acts1, s->scratch, &s->arch, &s->w1, &s->dout, &s->dout));
    must(block_backward_params(&s->acts0, s->scratch, &s->arch, &s->w0, &s->kv, &s->grads,
                               &s->dout));
}

static void check_step(const char *device, const char *name)
{
    struct step s;
    double loss = 0;
    step_open(&s, device, name);
    step_forward(&s, &loss);
    compare(&s, &s.acts0.kq, "kq");
    compare(&s, &s.acts0.vq, "vq");
    compare(&s, &s.out0, "out0");
    compare(&s, &s.out1, "out1");
    const float have = (float)loss;
    float want;
    memcpy(&want, st_find(s.file, "loss")->data, sizeof(want));
    check_error("loss", max_error(&have, &want, 1), TOLERANCE);
    step_backward(&s);
    compare(&s, &s.grads.k_dls, "d.k_ls");
    compare(&s, &s.grads.k_dshift, "d.k_delta");
    compare(&s, &s.grads.v_dls, "d.v_ls");
    compare(&s, &s.grads.v_dshift, "d.v_delta");
    compare_clip(&s);
    step_close(&s);
}

static void check_devices(const char *name)
{
    check_step("ref", name);
    check_step("cpu", name);
}

static void grouped_heads(void **state)
{
    check_devices("gqa");
}

static void biases_and_keys_before_rope(void **state)
{
    check_devices("bias_prerope");
}

static void qk_norm_and_no_past_only(void **state)
{
    check_devices("qknorm_all");
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s GOLDEN_DIR\n", argv[0]);
        return 77;
    }
    golden_dir = argv[1];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(grouped_heads),
        cmocka_unit_test(biases_and_keys_before_rope),
        cmocka_unit_test(qk_norm_and_no_past_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
