/* SPDX-License-Identifier: MIT
 *
 * Validation of an architecture's numbers, and the rotary tables. */
#include "calib/model/arch.h"

#include "kernels/tensor/qtensor.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>

const char *const rope_name[] = {"default", "linear", "dynamic",
                                 "llama3",  "yarn",   "longrope"};

/* Far above any model of these families, and low enough that a product of three dims fits
 * 63 bits. */
#define MAX_DIM (INT64_C(1) << 20)

static enum err check_dims(const struct arch *a)
{
    const struct {
        const char *name;
        int64_t value, max;
    } dim[] = {
        {"num_hidden_layers", a->n_layers, ARCH_MAX_LAYERS},
        {"hidden_size", a->d_model, MAX_DIM},
        {"intermediate_size", a->d_ff, MAX_DIM},
        {"num_attention_heads", a->n_heads, 4096},
        {"num_key_value_heads", a->n_kv, 4096},
        {"head_dim", a->head_dim, 4096},
        {"vocab_size", a->vocab, INT64_C(1) << 24},
        {"max_position_embeddings", a->max_positions, INT64_C(1) << 40},
    };
    for (size_t i = 0; i < ARRAY_LEN(dim); i++)
        FAIL_IF(dim[i].value < 1 || dim[i].value > dim[i].max, ERR_FORMAT,
                "%s is %" PRId64 ", want 1 to %" PRId64, dim[i].name, dim[i].value,
                dim[i].max);
    FAIL_IF(a->n_heads % a->n_kv, ERR_FORMAT,
            "num_attention_heads %" PRId64
            " is not a multiple of num_key_value_heads %" PRId64,
            a->n_heads, a->n_kv);
    FAIL_IF(a->head_dim % 2, ERR_SUPPORT,
            "head_dim is %" PRId64 ", the rotary embedding needs an even one", a->head_dim);
    FAIL_IF(a->rotary_dim < 0 || a->rotary_dim > a->head_dim || a->rotary_dim % 2,
            ERR_SUPPORT,
            "partial_rotary_factor gives %" PRId64 " of %" PRId64
            " channels a rotary embedding, want an even number of at least 2",
            a->rotary_dim, a->head_dim);
    return OK;
}

static enum err check_llama3(const struct arch *a)
{
    FAIL_IF(!(a->rope_low > 0) || !(a->rope_high > a->rope_low) || !isfinite(a->rope_high),
            ERR_FORMAT,
            "rope low_freq_factor is %g and high_freq_factor %g, want 0 < low < high",
            a->rope_low, a->rope_high);
    return OK;
}

/* Returns true if x is a normal positive number also in F32. */
static bool positive_f32(double x)
{
    return x >= (double)FLT_MIN && x <= (double)FLT_MAX;
}

static enum err check_attention_factor(const struct arch *a)
{
    FAIL_IF(!positive_f32(a->rope_attention), ERR_FORMAT,
            "rope attention_factor is %g, want %g to %g", a->rope_attention,
            (double)FLT_MIN, (double)FLT_MAX);
    return OK;
}

static enum err check_yarn(const struct arch *a)
{
    FAIL_IF(!(a->rope_low > 0) || !(a->rope_high >= a->rope_low) || !isfinite(a->rope_high),
            ERR_FORMAT, "rope beta_slow is %g and beta_fast %g, want 0 < slow <= fast",
            a->rope_low, a->rope_high);
    return check_attention_factor(a);
}

static enum err check_longrope(const struct arch *a)
{
    const int64_t pairs = arch_rotary_dim(a) / 2;
    FAIL_IF(pairs > ARCH_MAX_PAIRS, ERR_SUPPORT,
            "rope_type longrope with %" PRId64
            " pairs of channels; at most %d are supported",
            pairs, ARCH_MAX_PAIRS);
    for (int64_t i = 0; i < pairs; i++)
        FAIL_IF(!positive_f32(a->rope_short[i]), ERR_FORMAT,
                "rope short_factor[%" PRId64 "] is %g, want %g to %g", i, a->rope_short[i],
                (double)FLT_MIN, (double)FLT_MAX);
    return check_attention_factor(a);
}

static enum err check_rope(const struct arch *a)
{
    FAIL_IF(!(a->rope_theta > 1) || !isfinite(a->rope_theta), ERR_FORMAT,
            "rope_theta is %g, want a number above 1", a->rope_theta);
    FAIL_IF(a->rope_theta_sliding != 0 &&
                (!(a->rope_theta_sliding > 1) || !isfinite(a->rope_theta_sliding)),
            ERR_FORMAT, "rope_local_base_freq is %g, want a number above 1",
            a->rope_theta_sliding);
    if (a->rope == ROPE_DEFAULT)
        return OK;
    if (a->rope == ROPE_LONGROPE)
        return check_longrope(a);
    FAIL_IF(!(a->rope_factor >= 1) || !isfinite(a->rope_factor), ERR_FORMAT,
            "rope scaling factor is %g, want a number of at least 1", a->rope_factor);
    if (a->rope == ROPE_LINEAR || a->rope == ROPE_DYNAMIC)
        return OK;
    TRY(a->rope == ROPE_YARN ? check_yarn(a) : check_llama3(a));
    FAIL_IF(a->rope_original < 1, ERR_FORMAT,
            "rope original_max_position_embeddings is %" PRId64 ", want at least 1",
            a->rope_original);
    return OK;
}

static enum err check_factors(const struct arch *a)
{
    const struct {
        const char *name;
        double value;
    } factor[] = {{"embedding", a->embed_scale},
                  {"scores", a->attn_scale},
                  {"residual stream", a->residual_scale},
                  {"logits", a->logit_scale}};
    for (size_t i = 0; i < ARRAY_LEN(factor); i++)
        FAIL_IF(factor[i].value && !positive_f32(factor[i].value), ERR_FORMAT,
                "the factor of the %s is %g, want %g to %g", factor[i].name,
                factor[i].value, (double)FLT_MIN, (double)FLT_MAX);
    return OK;
}

static enum err check_experts(const struct arch *a)
{
    FAIL_IF(a->n_experts < 0 || a->n_experts > ARCH_MAX_EXPERTS, ERR_FORMAT,
            "num_experts is %" PRId64 ", want 1 to %d", a->n_experts, ARCH_MAX_EXPERTS);
    FAIL_IF(a->n_experts && (a->n_active < 1 || a->n_active > a->n_experts ||
                             a->n_active > ARCH_MAX_ACTIVE),
            ERR_FORMAT,
            "num_experts_per_tok is %" PRId64
            ", want 1 to %d and at most num_experts, %" PRId64,
            a->n_active, ARCH_MAX_ACTIVE, a->n_experts);
    return OK;
}

enum err arch_check(const struct arch *a)
{
    TRY(check_dims(a));
    TRY(check_experts(a));
    FAIL_IF(!(a->norm_eps > 0) || !(a->norm_eps < 1), ERR_FORMAT,
            "rms_norm_eps is %g, want a number between 0 and 1", (double)a->norm_eps);
    FAIL_IF(a->sliding_window < 0, ERR_FORMAT, "sliding_window is %" PRId64,
            a->sliding_window);
    TRY(check_factors(a));
    return check_rope(a);
}

enum err arch_check_length(const struct arch *a, int64_t tokens)
{
    FAIL_IF(tokens < 1, ERR_USAGE, "a length of %" PRId64 " tokens; want at least 1",
            tokens);
    FAIL_IF(
        a->rope == ROPE_DYNAMIC && tokens > a->max_positions, ERR_SUPPORT,
        "%" PRId64 " tokens are more than the model's max_position_embeddings, %" PRId64
        ": beyond it rope_type \"dynamic\" rotates every key by the whole length, which "
        "is not supported; use a shorter length",
        tokens, a->max_positions);
    FAIL_IF(
        a->rope == ROPE_LONGROPE && tokens > a->max_positions, ERR_SUPPORT,
        "%" PRId64 " tokens are more than %" PRId64
        ", the original_max_position_embeddings: beyond it rope_type \"longrope\" rotates "
        "every key by long_factor, which is not supported; use a shorter length",
        tokens, a->max_positions);
    FAIL_IF(tokens > a->max_positions, ERR_SUPPORT,
            "%" PRId64 " tokens are more than the model's max_position_embeddings, %" PRId64
            "; use a shorter length",
            tokens, a->max_positions);
    return OK;
}

bool arch_of_experts(const struct arch *a, int l)
{
    return a->n_experts && (l == LIN_GATE || l == LIN_UP || l == LIN_DOWN);
}

int64_t arch_stacked(const struct arch *a, int l)
{
    return arch_of_experts(a, l) ? a->n_experts : 1;
}

int64_t arch_mlp_rows(const struct arch *a)
{
    return a->n_experts ? a->n_active : 1;
}

const char *arch_lin_module(const struct arch *a, int l)
{
    static const char *const stacked[] = {[LIN_GATE] = "mlp.experts.gate_proj",
                                          [LIN_UP] = "mlp.experts.up_proj",
                                          [LIN_DOWN] = "mlp.experts.down_proj"};
    return arch_of_experts(a, l) ? stacked[l] : lin_module[l];
}

const char *arch_router_module(const struct arch *a)
{
    return a->family == ARCH_MIXTRAL ? "block_sparse_moe.gate" : "mlp.gate";
}

int64_t arch_out(const struct arch *a, int l)
{
    switch (l) {
    case LIN_Q:
        return a->n_heads * a->head_dim;
    case LIN_K:
    case LIN_V:
        return a->n_kv * a->head_dim;
    case LIN_GATE:
    case LIN_UP:
        return a->d_ff * arch_stacked(a, l);
    case LIN_DOWN:
        return a->d_model * arch_stacked(a, l);
    default:
        return a->d_model;
    }
}

int64_t arch_in(const struct arch *a, int l)
{
    switch (l) {
    case LIN_O:
        return a->n_heads * a->head_dim;
    case LIN_DOWN:
        return a->d_ff;
    default:
        return a->d_model;
    }
}

/* Returns the length of the gain of queries or keys, which have this many heads. */
static int64_t qk_gain(const struct arch *a, int64_t heads)
{
    if (a->qk_norm == QK_NORM_NONE)
        return 0;
    return a->qk_norm == QK_NORM_ALL ? heads * a->head_dim : a->head_dim;
}

int64_t arch_gain(const struct arch *a, int64_t b, enum norm_gain g)
{
    switch (g) {
    case GAIN_ATTENTION:
    case GAIN_MLP:
        return a->norms != NORMS_BEHIND ? a->d_model : 0;
    case GAIN_ATTENTION_OUT:
    case GAIN_MLP_OUT:
        return a->norms != NORMS_BEFORE ? a->d_model : 0;
    case GAIN_Q:
        return qk_gain(a, a->n_heads);
    case GAIN_K:
        return qk_gain(a, a->n_kv);
    default:
        return b == a->n_layers - 1 ? a->d_model : 0;
    }
}

int64_t arch_gains(const struct arch *a, int64_t b)
{
    int64_t n = 0;
    for (int g = 0; g < N_GAINS; g++)
        n += arch_gain(a, b, (enum norm_gain)g);
    return n;
}

const char *arch_norm_module(const struct arch *a, enum norm_gain g)
{
    /* LLaMA's second norm is named after its place behind attention, but belongs to the MLP. */
    static const char *const module[] = {[GAIN_ATTENTION] = "input_layernorm",
                                         [GAIN_MLP] = "post_attention_layernorm",
                                         [GAIN_Q] = "self_attn.q_norm",
                                         [GAIN_K] = "self_attn.k_norm",
                                         [GAIN_ATTENTION_OUT] = "post_attention_layernorm",
                                         [GAIN_MLP_OUT] = "post_feedforward_layernorm",
                                         [GAIN_FINAL] = "model.norm"};
    if (g == GAIN_MLP && a->norms == NORMS_AROUND)
        return "pre_feedforward_layernorm";
    return module[g];
}

bool arch_has_bias(const struct arch *a, int l)
{
    switch (l) {
    case LIN_Q:
    case LIN_K:
    case LIN_V:
        return a->qkv_bias;
    case LIN_O:
        return a->o_bias;
    default:
        return a->mlp_bias;
    }
}

bool arch_interleaves_keys(const struct arch *a)
{
    return a->family == ARCH_LLAMA || a->family == ARCH_MISTRAL ||
           a->family == ARCH_GRANITE || a->family == ARCH_SMOLLM3 ||
           a->family == ARCH_MIXTRAL;
}

bool arch_holds_value_shift(const struct arch *a)
{
    return a->family == ARCH_LLAMA;
}

int64_t arch_reach(const struct arch *a, int64_t layer)
{
    return layer_set_has(&a->sliding, layer) ? a->sliding_window : 0;
}

int64_t arch_full_attention(const struct arch *a)
{
    int64_t n = a->max_positions;
    for (int64_t i = 0; i < a->n_layers; i++) {
        const int64_t reach = arch_reach(a, i);
        n = reach && reach < n ? reach : n;
    }
    return n;
}

float arch_attn_scale(const struct arch *a)
{
    return (float)(a->attn_scale != 0 ? a->attn_scale : 1 / sqrt((double)a->head_dim));
}

float arch_factor(double factor)
{
    return factor != 0 ? (float)factor : 1;
}

/* Weights of the seven projections: norms and biases are not quantized. */
int64_t arch_block_params(const struct arch *a)
{
    int64_t n = 0;
    for (int l = 0; l < N_LIN; l++)
        n += arch_out(a, l) * arch_in(a, l);
    return n;
}

int64_t arch_token_params(const struct arch *a)
{
    int64_t n = 0;
    for (int l = 0; l < N_LIN; l++) {
        const int64_t all = arch_out(a, l) * arch_in(a, l), stacked = arch_stacked(a, l);
        n += stacked > 1 ? all / stacked * a->n_active : all;
    }
    return n;
}

/* Llama 3: long wavelengths are scaled by factor and short ones are unchanged; between them
 * is a linear blend in turns = original / wavelength, the rotations over the original
 * context. A pair that never completes a turn has seen only a part of its angles in
 * training, so it is stretched; a pair that turns often encodes near distances, which must
 * stay as they are. */
static double scale_llama3(const struct arch *a, double inv)
{
    const double turns = (double)a->rope_original * inv / (2 * M_PI);
    if (turns > a->rope_high)
        return inv;
    if (turns < a->rope_low)
        return inv / a->rope_factor;
    const double s = (turns - a->rope_low) / (a->rope_high - a->rope_low);
    return (1 - s) * inv / a->rope_factor + s * inv;
}

int64_t arch_rotary_dim(const struct arch *a)
{
    return a->rotary_dim ? a->rotary_dim : a->head_dim;
}

/* Returns the dimension, of r / 2, that turns this many times over the original context:
 * the i with original theta^(-2 i / r) = 2 pi turns, solved for i. */
static double yarn_dim(const struct arch *a, double turns)
{
    const double wave = (double)a->rope_original / (turns * 2 * M_PI);
    return (double)arch_rotary_dim(a) * log(wave) / (2 * log(a->rope_theta));
}

/* YaRN (Peng et al., arXiv 2309.00071): dimensions that turn often are unchanged and those
 * that turn rarely are scaled by factor, with a linear ramp between them. The clamps and
 * the 0.001 against a division by 0 are those of Hugging Face's implementation. */
static double scale_yarn(const struct arch *a, int64_t i, double inv)
{
    double from = yarn_dim(a, a->rope_high), to = yarn_dim(a, a->rope_low);
    if (a->rope_truncate) {
        from = floor(from);
        to = ceil(to);
    }
    from = fmax(from, 0);
    to = fmin(to, (double)arch_rotary_dim(a) - 1);
    if (from == to)
        to += 0.001;
    const double s = fmin(fmax(((double)i - from) / (to - from), 0), 1);
    return (1 - s) * inv + s * inv / a->rope_factor;
}

/* Angle per token of pair i: theta^(-2 i / r) (Su et al. 2021), as the checkpoint's
 * rope_type changes it. A dynamic rope is the plain one up to the model's own length. */
double arch_inv_freq(const struct arch *a, int64_t i)
{
    const double inv = pow(a->rope_theta, -2.0 * (double)i / (double)arch_rotary_dim(a));
    switch (a->rope) {
    case ROPE_LINEAR:
        return inv / a->rope_factor;
    case ROPE_LLAMA3:
        return scale_llama3(a, inv);
    case ROPE_YARN:
        return scale_yarn(a, i, inv);
    case ROPE_LONGROPE:
        return inv / a->rope_short[i];
    default:
        return inv;
    }
}

/* In f64, because an F32 angle of 10^5 is off by up to 0.004. YaRN and LongRoPE multiply cos
 * and sin by their attention factor, so that scores get the square. */
static void fill_rope(const struct arch *a, int64_t first, int64_t T, float *c, float *s,
                      int64_t columns)
{
    const int64_t half = arch_rotary_dim(a) / 2;
    const bool scaled = a->rope == ROPE_YARN || a->rope == ROPE_LONGROPE;
    const double length = scaled ? a->rope_attention : 1;
    for (int64_t i = 0; i < half; i++) {
        const double inv = arch_inv_freq(a, i);
        for (int64_t t = 0; t < T; t++) {
            const double angle = (double)(first + t) * inv;
            c[t * columns + i] = (float)(length * cos(angle));
            s[t * columns + i] = (float)(length * sin(angle));
        }
    }
}

int64_t arch_rope_columns(const struct arch *a)
{
    return arch_rotary_dim(a) / 2 * (a->rope_theta_sliding != 0 ? 2 : 1);
}

int64_t arch_rope_column(const struct arch *a, int64_t layer)
{
    const bool own = a->rope_theta_sliding != 0 && layer_set_has(&a->sliding, layer);
    return own ? arch_rotary_dim(a) / 2 : 0;
}

void arch_rope_table(const struct arch *a, int64_t first, int64_t T, float *c, float *s)
{
    const int64_t columns = arch_rope_columns(a), half = arch_rotary_dim(a) / 2;
    struct arch sliding = *a;
    fill_rope(a, first, T, c, s, columns);
    if (a->rope_theta_sliding == 0)
        return;
    sliding.rope = ROPE_DEFAULT;
    sliding.rope_theta = a->rope_theta_sliding;
    fill_rope(&sliding, first, T, c + half, s + half, columns);
}

/* --- comparison --------------------------------------------------------------------- */

struct field {
    const char *name;
    double a, b; /* whole numbers are exact up to 2^53 */
};

static bool first_of(struct arch_difference *out, const struct field *f, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (f[i].a != f[i].b) {
            snprintf(out->field, sizeof(out->field), "%s", f[i].name);
            out->a = f[i].a;
            out->b = f[i].b;
            return true;
        }
    return false;
}

static bool shapes_differ(struct arch_difference *out, const struct arch *a,
                          const struct arch *b)
{
    const struct field f[] = {
        {"num_hidden_layers", (double)a->n_layers, (double)b->n_layers},
        {"hidden_size", (double)a->d_model, (double)b->d_model},
        {a->n_experts ? "moe_intermediate_size" : "intermediate_size", (double)a->d_ff,
         (double)b->d_ff},
        {"num_experts", (double)a->n_experts, (double)b->n_experts},
        {"num_experts_per_tok", (double)a->n_active, (double)b->n_active},
        {"norm_topk_prob", a->norm_active, b->norm_active},
        {"num_attention_heads", (double)a->n_heads, (double)b->n_heads},
        {"num_key_value_heads", (double)a->n_kv, (double)b->n_kv},
        {"head_dim", (double)a->head_dim, (double)b->head_dim},
        {"vocab_size", (double)a->vocab, (double)b->vocab},
        {"attention_bias", a->qkv_bias + a->o_bias, b->qkv_bias + b->o_bias},
        {"mlp_bias", a->mlp_bias, b->mlp_bias},
    };
    return first_of(out, f, ARRAY_LEN(f));
}

/* Positions count only where angles depend on them. */
static double rope_positions(const struct arch *a)
{
    return a->rope == ROPE_DYNAMIC || a->rope == ROPE_LONGROPE ? (double)a->max_positions
                                                               : 0;
}

static bool values_differ(struct arch_difference *out, const struct arch *a,
                          const struct arch *b)
{
    const struct field f[] = {
        {"rms_norm_eps", (double)a->norm_eps, (double)b->norm_eps},
        {"hidden_act", a->gate, b->gate},
        {"embedding_multiplier", a->embed_scale, b->embed_scale},
        {"attention_multiplier", a->attn_scale, b->attn_scale},
        {"residual_multiplier", a->residual_scale, b->residual_scale},
        {"logits_scaling", a->logit_scale, b->logit_scale},
        {"rope_theta", a->rope_theta, b->rope_theta},
        {"rope_local_base_freq", a->rope_theta_sliding, b->rope_theta_sliding},
        {"partial_rotary_factor", (double)arch_rotary_dim(a) / (double)a->head_dim,
         (double)arch_rotary_dim(b) / (double)b->head_dim},
        {"rope_type", a->rope, b->rope},
        {"max_position_embeddings", rope_positions(a), rope_positions(b)},
        {"rope_scaling.factor", a->rope_factor, b->rope_factor},
        {"rope_scaling.low_freq_factor", a->rope_low, b->rope_low},
        {"rope_scaling.high_freq_factor", a->rope_high, b->rope_high},
        {"rope_scaling.original_max_position_embeddings", (double)a->rope_original,
         (double)b->rope_original},
        {"rope_scaling.attention_factor", a->rope_attention, b->rope_attention},
        {"rope_scaling.truncate", a->rope_truncate, b->rope_truncate},
    };
    return first_of(out, f, ARRAY_LEN(f));
}

static double window_of(const struct arch *a, int64_t layer)
{
    return layer_set_has(&a->sliding, layer) ? (double)a->sliding_window : 0;
}

/* Compares what layers and pairs of channels have of their own. */
static bool lists_differ(struct arch_difference *out, const struct arch *a,
                         const struct arch *b)
{
    char name[sizeof(out->field)];
    for (int64_t i = 0; i < a->n_layers; i++) {
        snprintf(name, sizeof(name), "layer %" PRId64 ": sliding_window", i);
        if (first_of(out, &(struct field){name, window_of(a, i), window_of(b, i)}, 1))
            return true;
        snprintf(name, sizeof(name), "layer %" PRId64 ": no_rope_layers", i);
        if (first_of(out,
                     &(struct field){name, layer_set_has(&a->no_rope, i),
                                     layer_set_has(&b->no_rope, i)},
                     1))
            return true;
    }
    for (int i = 0; i < ARCH_MAX_PAIRS && a->rope == ROPE_LONGROPE; i++) {
        snprintf(name, sizeof(name), "rope_scaling.short_factor[%d]", i);
        if (first_of(out, &(struct field){name, a->rope_short[i], b->rope_short[i]}, 1))
            return true;
    }
    return false;
}

bool arch_differs(struct arch_difference *out, const struct arch *a, const struct arch *b)
{
    return shapes_differ(out, a, b) || values_differ(out, a, b) || lists_differ(out, a, b);
}
