/* SPDX-License-Identifier: MIT
 *
 * Architecture checks and rotary tables. The llama3 frequencies are those of Hugging Face's
 * implementation for the two published models. */
#include "calib/model/arch.h"
#include "kernels/tensor/qtensor.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static struct arch small(void)
{
    return (struct arch){.family = ARCH_LLAMA,
                         .model_type = "llama",
                         .n_layers = 4,
                         .d_model = 24,
                         .d_ff = 40,
                         .n_heads = 4,
                         .n_kv = 2,
                         .head_dim = 8,
                         .vocab = 100,
                         .max_positions = 2048,
                         .norm_eps = 1e-5f,
                         .rope_theta = 10000,
                         .bos = 1};
}

static void good_one_passes(void **state)
{
    const struct arch a = small();
    assert_int_equal(arch_check(&a), OK);
    assert_int_equal(arch_check_length(&a, 2048), OK);
}

/* Checks for error e with a message that contains the words. */
static void refused(struct arch a, enum err e, const char *words)
{
    err_clear();
    assert_int_equal(arch_check(&a), e);
    if (!strstr(err_text(), words))
        fail_msg("'%s' lacks '%s'", err_text(), words);
    err_clear();
}

#define BAD(field, value, e, words)                                                        \
    do {                                                                                   \
        struct arch a = small();                                                           \
        a.field = value;                                                                   \
        refused(a, e, words);                                                              \
    } while (0)

static void bad_numbers_are_named(void **state)
{
    BAD(n_layers, 0, ERR_FORMAT, "num_hidden_layers is 0");
    BAD(d_model, -1, ERR_FORMAT, "hidden_size is -1");
    BAD(d_ff, INT64_MAX, ERR_FORMAT, "intermediate_size is 9223372036854775807");
    BAD(n_kv, 3, ERR_FORMAT, "num_key_value_heads 3");
    BAD(head_dim, 7, ERR_SUPPORT, "head_dim is 7");
    BAD(vocab, 0, ERR_FORMAT, "vocab_size");
    BAD(norm_eps, NAN, ERR_FORMAT, "rms_norm_eps");
    BAD(rope_theta, NAN, ERR_FORMAT, "rope_theta");
    BAD(rope_theta, 0, ERR_FORMAT, "rope_theta");
    BAD(embed_scale, INFINITY, ERR_FORMAT, "factor of the embedding is inf");
    BAD(attn_scale, -1, ERR_FORMAT, "factor of the scores is -1");
    BAD(residual_scale, NAN, ERR_FORMAT, "factor of the residual stream is nan");
    BAD(logit_scale, 1e39, ERR_FORMAT, "factor of the logits is 1e+39");
    BAD(logit_scale, 1e-60, ERR_FORMAT, "factor of the logits is 1e-60");
    BAD(rope, ROPE_LINEAR, ERR_FORMAT, "factor is 0");
    BAD(rope, ROPE_DYNAMIC, ERR_FORMAT, "factor is 0");
    struct arch a = small();
    a.rope = ROPE_LLAMA3;
    a.rope_factor = 8;
    a.rope_low = 4;
    a.rope_high = 1;
    refused(a, ERR_FORMAT, "low_freq_factor is 4");
    a.rope_low = 1;
    a.rope_high = 4;
    refused(a, ERR_FORMAT, "original_max_position_embeddings is 0");
    a.rope = ROPE_YARN;
    a.rope_original = 16;
    refused(a, ERR_FORMAT, "attention_factor is 0");
    a.rope_attention = 1;
    assert_int_equal(arch_check(&a), OK);
    a.rope_low = 5;
    refused(a, ERR_FORMAT, "beta_slow is 5 and beta_fast 4");
    a.rope_low = 0;
    refused(a, ERR_FORMAT, "beta_slow is 0");
}

static void factors(void **state)
{
    struct arch a = small();
    assert_true(arch_attn_scale(&a) == (float)(1 / sqrt((double)a.head_dim)));
    a.attn_scale = 0.015625;
    assert_int_equal(arch_check(&a), OK);
    assert_true(arch_attn_scale(&a) == 0.015625f);
    assert_true(arch_factor(0) == 1 && arch_factor(12.5) == 12.5f);
}

static void length_limits(void **state)
{
    struct arch a = small();
    assert_int_equal(arch_check_length(&a, 2049), ERR_SUPPORT);
    assert_non_null(strstr(err_text(), "max_position_embeddings, 2048"));
    err_clear();
    assert_int_equal(arch_check_length(&a, 0), ERR_USAGE);
    err_clear();
    a.sliding_window = 100;
    layer_set_add(&a.sliding, 0);
    assert_int_equal(arch_check_length(&a, 2048), OK);
}

static void sliding_layers(void **state)
{
    struct arch a = small();
    a.sliding_window = 100;
    assert_int_equal(arch_full_attention(&a), 2048); /* no layer slides */
    layer_set_add(&a.sliding, 1);
    layer_set_add(&a.sliding, 3);
    for (int64_t i = 0; i < 4; i++)
        assert_int_equal(arch_reach(&a, i), i % 2 ? 100 : 0);
    assert_int_equal(arch_full_attention(&a), 100);
    a.sliding_window = 4096; /* longer than any text */
    assert_int_equal(arch_full_attention(&a), 2048);
    layer_set_add(&a.no_rope, ARCH_MAX_LAYERS - 1);
    assert_true(layer_set_has(&a.no_rope, ARCH_MAX_LAYERS - 1));
    assert_false(layer_set_has(&a.no_rope, ARCH_MAX_LAYERS - 2));
}

static void projections(void **state)
{
    const struct arch a = small();
    const int64_t out[N_LIN] = {32, 16, 16, 24, 40, 40, 24};
    const int64_t in[N_LIN] = {24, 24, 24, 32, 24, 24, 40};
    int64_t params = 0;
    for (int l = 0; l < N_LIN; l++) {
        assert_int_equal(arch_out(&a, l), out[l]);
        assert_int_equal(arch_in(&a, l), in[l]);
        params += out[l] * in[l];
    }
    assert_int_equal(arch_block_params(&a), params);
    struct arch b = a;
    b.mlp_bias = true;
    for (int l = 0; l < N_LIN; l++) {
        assert_false(arch_has_bias(&a, l));
        assert_int_equal(arch_has_bias(&b, l), l >= LIN_GATE);
    }
}

struct freq {
    int i;
    double inv;
};

/* Angle of frequency i at position 1 is the inverse frequency itself. */
static void check_freqs(const struct arch *a, const struct freq *f, int n)
{
    float c[2][64], s[2][64];
    const int64_t half = a->head_dim / 2;
    arch_rope_table(a, 0, 2, &c[0][0], &s[0][0]);
    const float *c1 = &c[0][0] + half, *s1 = &s[0][0] + half;
    for (int j = 0; j < n; j++) {
        const int i = f[j].i;
        assert_true(s[0][0] == 0 && c[0][0] == 1);
        const bool pass = fabs(s1[i] - sin(f[j].inv)) <= 1e-6 * fabs(f[j].inv) &&
                          fabs(c1[i] - cos(f[j].inv)) <= 1e-7;
        if (!pass)
            fail_msg("frequency %d: sin %.9g, want that of %.9g", i, (double)s1[i],
                     f[j].inv);
    }
}

static void llama3_scaling(void **state)
{
    struct arch a = small();
    a.rope = ROPE_LLAMA3;
    a.rope_theta = 500000;
    a.rope_low = 1;
    a.rope_high = 4;
    a.rope_original = 8192;
    a.rope_factor = 8; /* LLaMA-3.1-8B */
    a.head_dim = 128;
    const struct freq big[] = {{0, 1},
                               {28, 0.00321144599},
                               {29, 0.00216657076},
                               {30, 0.00137189357},
                               {32, 0.000524846161},
                               {34, 0.000178507813},
                               {35, 9.55621235e-05},
                               {63, 3.06892599e-07}};
    check_freqs(&a, big, ARRAY_LEN(big));
    a.rope_factor = 32; /* LLaMA-3.2-1B */
    a.head_dim = 64;
    const struct freq tiny[] = {{14, 0.00321144599},  {15, 0.00129054793},
                                {16, 0.000429556797}, {17, 9.7082878e-05},
                                {18, 1.94616382e-05}, {31, 9.41830673e-08}};
    check_freqs(&a, tiny, ARRAY_LEN(tiny));
}

/* The angles of yarn at position 1, without the attention factor. */
static void check_yarn(const struct arch *a, double attention, const struct freq *f, int n)
{
    float c[2][64], s[2][64];
    const int64_t half = a->head_dim / 2;
    arch_rope_table(a, 0, 2, &c[0][0], &s[0][0]);
    const float *s1 = &s[0][0] + half;
    for (int j = 0; j < n; j++) {
        const double want = attention * sin(f[j].inv);
        const bool pass = fabs(s1[f[j].i] - want) <= 1e-6 * fabs(want) &&
                          fabs(c[0][f[j].i] - attention) <= 1e-6;
        if (!pass)
            fail_msg("frequency %d: sin %.9g, want %.9g", f[j].i, (double)s1[f[j].i], want);
    }
}

/* Inverse frequencies of transformers' _compute_yarn_parameters. */
static void yarn_scaling(void **state)
{
    struct arch a = small();
    a.rope = ROPE_YARN;
    a.rope_theta = 1e6; /* Qwen2.5 */
    a.rope_factor = 4;
    a.rope_original = 32768;
    a.rope_low = 1;
    a.rope_high = 32;
    a.rope_attention = 1.138629436111989;
    a.rope_truncate = true;
    a.head_dim = 128;
    const struct freq whole[] = {{0, 1},
                                 {20, 0.0133352149},
                                 {25, 0.0041317381},
                                 {30, 0.00106436096},
                                 {35, 0.000246258394},
                                 {40, 4.44569851e-05},
                                 {63, 3.10234441e-07}};
    check_yarn(&a, 1.138629436111989, whole, ARRAY_LEN(whole));
    a.rope_truncate = false;
    const struct freq exact[] = {
        {25, 0.0042343582}, {30, 0.00107923767}, {35, 0.000244518887}};
    check_yarn(&a, 1.138629436111989, exact, ARRAY_LEN(exact));
    a.rope_truncate = true;
    a.rope_low = 2;
    a.rope_high = 8;
    a.rope_attention = 0.5;
    const struct freq betas[] = {
        {25, 0.00453158375}, {30, 0.00153992651}, {35, 0.00024296029}};
    check_yarn(&a, 0.5, betas, ARRAY_LEN(betas));
    a.rope_low = 1;
    a.rope_high = 32;
    a.rope_original = 4; /* the ramp would end before it starts: no frequency is scaled */
    const struct freq tight[] = {
        {25, 0.00453158375}, {45, 6.04296365e-05}, {63, 1.24093776e-06}};
    check_yarn(&a, 0.5, tight, ARRAY_LEN(tight));
}

/* Up to the model's length, a dynamic rotation is the plain one; beyond it, it is refused. */
static void dynamic_scaling(void **state)
{
    struct arch a = small(), plain = small();
    float c[2][3][4], s[2][3][4];
    a.rope = ROPE_DYNAMIC;
    a.rope_factor = 4;
    arch_rope_table(&a, a.max_positions - 3, 3, &c[0][0][0], &s[0][0][0]);
    arch_rope_table(&plain, a.max_positions - 3, 3, &c[1][0][0], &s[1][0][0]);
    assert_memory_equal(c[0], c[1], sizeof(c[0]));
    assert_memory_equal(s[0], s[1], sizeof(s[0]));
    assert_int_equal(arch_check_length(&a, a.max_positions), OK);
    err_clear();
    assert_int_equal(arch_check_length(&a, a.max_positions + 1), ERR_SUPPORT);
    assert_non_null(strstr(err_text(), "rope_type \"dynamic\""));
}

/* Three pairs of 8 channels, with a divisor of the angle each. */
static void longrope_scaling(void **state)
{
    struct arch a = small();
    float c[3], s[3];
    a.rope = ROPE_LONGROPE;
    a.rotary_dim = 6;
    a.rope_attention = 1.25;
    for (int i = 0; i < 3; i++)
        a.rope_short[i] = 1 << i;
    assert_int_equal(arch_check(&a), OK);
    arch_rope_table(&a, 5, 1, c, s);
    for (int i = 0; i < 3; i++) {
        const double angle = 5 * pow(10000, -2.0 * i / 6) / (1 << i);
        const bool pass = fabs((double)c[i] - 1.25 * cos(angle)) <= 2e-7 &&
                          fabs((double)s[i] - 1.25 * sin(angle)) <= 2e-7;
        assert_true(pass);
    }
    a.rotary_dim = 10;
    refused(a, ERR_SUPPORT, "10 of 8 channels");
    a.rotary_dim = 8;
    refused(a, ERR_FORMAT, "short_factor[3] is 0");
    a.rope_short[3] = INFINITY;
    refused(a, ERR_FORMAT, "short_factor[3] is inf");
    a.head_dim = a.rotary_dim = 1024;
    refused(a, ERR_SUPPORT, "512 pairs");
}

static void plain_and_linear(void **state)
{
    struct arch a = small();
    float c[3][4], s[3][4];
    arch_rope_table(&a, 5, 3, &c[0][0], &s[0][0]);
    for (int t = 0; t < 3; t++)
        for (int i = 0; i < 4; i++) {
            const double angle = (5 + t) * pow(10, -i);
            const bool pass =
                fabs(c[t][i] - cos(angle)) <= 1e-7 && fabs(s[t][i] - sin(angle)) <= 1e-7;
            assert_true(pass);
        }
    a.rope = ROPE_LINEAR;
    a.rope_factor = 4;
    arch_rope_table(&a, 5, 1, &c[0][0], &s[0][0]);
    const bool pass = fabs(s[0][0] - sin(1.25)) <= 1e-7;
    assert_true(pass);
}

/* Checks that b, which differs from a in one field, is told from it by that field's name. */
static void told_apart(const struct arch *a, const struct arch *b, const char *field,
                       double in_a, double in_b)
{
    struct arch_difference d;
    assert_true(arch_differs(&d, a, b));
    assert_string_equal(d.field, field);
    assert_true(d.a == in_a && d.b == in_b);
}

#define TOLD(member, value, field)                                                         \
    do {                                                                                   \
        struct arch other = a;                                                             \
        other.member = value;                                                              \
        told_apart(&a, &other, field, (double)a.member, (double)other.member);             \
    } while (0)

static void differences(void **state)
{
    struct arch a = small();
    struct arch_difference d;
    a.rope = ROPE_LONGROPE;
    a.sliding_window = 64;
    layer_set_add(&a.sliding, 2);
    struct arch b = a;
    b.bos = 7; /* no numbers of the model depend on it */
    b.dtype = DT_F16;
    assert_false(arch_differs(&d, &a, &b));
    TOLD(n_layers, 3, "num_hidden_layers");
    TOLD(n_active, 1, "num_experts_per_tok");
    TOLD(mlp_bias, true, "mlp_bias");
    TOLD(norm_eps, 1e-6f, "rms_norm_eps");
    TOLD(gate, a.gate + 1, "hidden_act");
    TOLD(embed_scale, 2, "embedding_multiplier");
    TOLD(attn_scale, 0.1, "attention_multiplier");
    TOLD(residual_scale, 0.2, "residual_multiplier");
    TOLD(logit_scale, 8, "logits_scaling");
    TOLD(rope_theta, 5e5, "rope_theta");
    TOLD(rope_theta_sliding, 1e4, "rope_local_base_freq");
    TOLD(rope, ROPE_YARN, "rope_type");
    TOLD(rope_factor, 4, "rope_scaling.factor");
    TOLD(rope_low, 1, "rope_scaling.low_freq_factor");
    TOLD(rope_high, 4, "rope_scaling.high_freq_factor");
    TOLD(rope_original, 32, "rope_scaling.original_max_position_embeddings");
    TOLD(rope_attention, 1.2, "rope_scaling.attention_factor");
    TOLD(rope_truncate, true, "rope_scaling.truncate");
    TOLD(max_positions, 4096, "max_position_embeddings");
    TOLD(rope_short[3], 2, "rope_scaling.short_factor[3]");
    TOLD(sliding_window, 32, "layer 2: sliding_window");
    b = a;
    layer_set_add(&b.no_rope, 1);
    told_apart(&a, &b, "layer 1: no_rope_layers", 0, 1);
    b = a;
    b.rotary_dim = 4;
    told_apart(&a, &b, "partial_rotary_factor", 1, 0.5);
    a.rope = b.rope = ROPE_DEFAULT; /* positions are then a limit of the length */
    b.rotary_dim = 0;
    b.max_positions = 4096;
    assert_false(arch_differs(&d, &a, &b));
}

/* llama.cpp's converter interleaves the rows of q and k in these families, and in no others. */
static void neighbours_turn_in_llamas_graphs(void **state)
{
    static const enum arch_family turned[] = {ARCH_LLAMA, ARCH_MISTRAL, ARCH_GRANITE,
                                              ARCH_SMOLLM3, ARCH_MIXTRAL};
    for (int f = ARCH_LLAMA; f <= ARCH_MIXTRAL; f++) {
        bool want = false;
        for (size_t i = 0; i < ARRAY_LEN(turned); i++)
            want = want || f == (int)turned[i];
        const struct arch a = {.family = (enum arch_family)f};
        assert_int_equal(arch_interleaves_keys(&a), want);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(neighbours_turn_in_llamas_graphs),
        cmocka_unit_test(differences),
        cmocka_unit_test(good_one_passes),
        cmocka_unit_test(bad_numbers_are_named),
        cmocka_unit_test(factors),
        cmocka_unit_test(sliding_layers),
        cmocka_unit_test(length_limits),
        cmocka_unit_test(projections),
        cmocka_unit_test(llama3_scaling),
        cmocka_unit_test(longrope_scaling),
        cmocka_unit_test(plain_and_linear),
        cmocka_unit_test(yarn_scaling),
        cmocka_unit_test(dynamic_scaling),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
