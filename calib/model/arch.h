/* SPDX-License-Identifier: MIT
 *
 * Describes a LLaMA-family decoder, and validates the description. Pure functions,
 * thread-safe. */
#ifndef WKVQ_ARCH_H
#define WKVQ_ARCH_H

#include "kernels/tensor/gate.h"
#include "kernels/tensor/qtensor.h"
#include "kernels/tensor/tensor.h"

#include <stdbool.h>

enum arch_family {
    ARCH_LLAMA,
    ARCH_MISTRAL,
    ARCH_QWEN2,
    ARCH_QWEN3,
    ARCH_GRANITE,
    ARCH_SMOLLM3,
    ARCH_PHI3,
    ARCH_OLMO2,
    ARCH_GEMMA3,
    ARCH_QWEN3_MOE,
    ARCH_MIXTRAL
};
/* Where attention and the MLP have their norms: before them, behind them, on what they add to the
 * residual stream, or both. */
enum norm_place { NORMS_BEFORE, NORMS_BEHIND, NORMS_AROUND };
/* What the norm of queries and keys covers: there is none, each head by itself, or all heads of a
 * token together. */
enum qk_norm { QK_NORM_NONE, QK_NORM_HEAD, QK_NORM_ALL };
enum rope_kind {
    ROPE_DEFAULT,
    ROPE_LINEAR,
    ROPE_DYNAMIC,
    ROPE_LLAMA3,
    ROPE_YARN,
    ROPE_LONGROPE
};
extern const char *const rope_name[]; /* as config.json has them, by enum rope_kind */

/* Pairs of channels, r / 2, for which a longrope can have factors. */
#define ARCH_MAX_PAIRS 256

/* Bounds of experts that keep every product of sizes in 63 bits. */
#define ARCH_MAX_EXPERTS 1024
#define ARCH_MAX_ACTIVE 64

/* A set of layers. */
#define ARCH_MAX_LAYERS 4096
struct layer_set {
    uint64_t word[ARCH_MAX_LAYERS / 64];
};

static inline bool layer_set_has(const struct layer_set *s, int64_t layer)
{
    return s->word[layer / 64] >> (layer % 64) & 1;
}

static inline void layer_set_add(struct layer_set *s, int64_t layer)
{
    s->word[layer / 64] |= UINT64_C(1) << (layer % 64);
}

struct arch {
    enum arch_family family;
    char model_type[16]; /* "llama", "mistral", ...: see hf_config.c */
    int64_t n_layers;
    int64_t d_model;   /* D, hidden_size */
    int64_t d_ff;      /* F, intermediate_size; of one expert, if there are several */
    int64_t n_experts; /* E, MLPs of a layer among which a router chooses; 0: one for all */
    int64_t n_active;  /* k, experts that it chooses for a token */
    bool norm_active;  /* the chosen experts' weights are divided by their sum */
    int64_t n_heads;   /* H */
    int64_t n_kv;      /* K, divides H */
    int64_t head_dim;  /* d, even; H*d may differ from D */
    int64_t vocab;     /* V, rows of the embedding */
    int64_t max_positions; /* of longrope: those for which rope_short is */
    float norm_eps;
    double rope_theta;
    double rope_theta_sliding; /* of sliding layers, without scaling; 0: as others */
    int64_t rotary_dim;        /* r, channels of a head that a rope rotates, even; 0: d */
    enum rope_kind rope;
    double rope_factor;         /* not of default; of dynamic: beyond max_positions */
    double rope_low, rope_high; /* llama3: frequency factors; yarn: beta_slow, beta_fast */
    int64_t rope_original; /* llama3, yarn, longrope: original_max_position_embeddings */
    double rope_attention; /* yarn, longrope: factor of cos and sin */
    double rope_short[ARCH_MAX_PAIRS]; /* [r/2] longrope: divisors of the angles */
    bool rope_truncate; /* yarn: the ramp starts and ends at integer dimensions */
    bool qkv_bias, o_bias;
    bool mlp_bias; /* of gate, up and down */
    bool tied;
    bool fused; /* a checkpoint has q, k, v in one tensor, and gate, up in another */
    enum norm_place norms;
    enum qk_norm qk_norm;
    bool gain_plus_one; /* norms multiply by 1 + their weight */
    enum gate_act gate;
    /* Factors; 0 stands for what other families have: 1, for scores 1 / sqrt(d). */
    double embed_scale;         /* of the embedding's rows */
    double attn_scale;          /* of the scores q . k */
    double residual_scale;      /* of what attention and MLP add to the residual stream */
    double logit_scale;         /* of the logits */
    int64_t sliding_window;     /* tokens that a query sees, itself included; 0: all */
    struct layer_set sliding;   /* layers to which the window applies */
    struct layer_set no_rope;   /* layers without a rotary embedding */
    int64_t bos, n_eos, eos[8]; /* token ids; bos -1 if none */
    enum dtype dtype;           /* of the checkpoint as config.json says; informative */
};

/* Checks that dims are positive and bounded, heads divisible, and d even. Errors:
 * ERR_SUPPORT, ERR_FORMAT. */
enum err arch_check(const struct arch *a);
/* Refuses (ERR_SUPPORT) a length beyond max_positions. The message has field and value. */
enum err arch_check_length(const struct arch *a, int64_t tokens);

/* Return the output and input features of projection l. Those of the experts of a layer count as
 * one with more rows: rows [e F, (e + 1) F) of gate and up, and [e D, (e + 1) D) of down, are
 * expert e's. */
int64_t arch_out(const struct arch *a, int l);
int64_t arch_in(const struct arch *a, int l);
/* Returns the module of projection l in artifacts: Hugging Face's name of it without the layer's
 * "model.layers.N.", "mlp.experts.gate_proj" for those of all experts together. */
const char *arch_lin_module(const struct arch *a, int l);
/* Returns the module of the router as Hugging Face names it, as above: "mlp.gate". */
const char *arch_router_module(const struct arch *a);
/* Returns true for a projection that each expert of a layer has. */
bool arch_of_experts(const struct arch *a, int l);
/* Returns the experts of a layer whose projections l are one with more rows, 1 if there are
 * none. */
int64_t arch_stacked(const struct arch *a, int l);
/* Returns how many rows of the MLP's activations a token has: k, or 1 without experts. */
int64_t arch_mlp_rows(const struct arch *a);
/* Returns true if projection l adds a bias. */
bool arch_has_bias(const struct arch *a, int l);
/* Returns the length of a norm's gain in layer b; 0 if that layer has no such norm. The final
 * norm counts to the last layer. */
int64_t arch_gain(const struct arch *a, int64_t b, enum norm_gain g);
/* Returns how many gains layer b has in all. */
int64_t arch_gains(const struct arch *a, int64_t b);
/* Returns the module of a norm as Hugging Face names it, "input_layernorm", without the
 * layer's "model.layers.N.". Of GAIN_FINAL: "model.norm". */
const char *arch_norm_module(const struct arch *a, enum norm_gain g);
/* Returns the number of weights of the seven projections of one block, and of those with which a
 * token is multiplied. */
int64_t arch_block_params(const struct arch *a);
int64_t arch_token_params(const struct arch *a);

/* Returns true if llama.cpp's graph of the family turns neighbouring channels of queries and
 * keys, 2 i and 2 i + 1, where ours turns i and i + d / 2: its channels are then interleaved. */
bool arch_interleaves_keys(const struct arch *a);
/* Returns true if checkpoints of the family may have the biases of v_proj and o_proj that hold a
 * shift of values, in llama.cpp, too. */
bool arch_holds_value_shift(const struct arch *a);
/* Returns how many tokens a query of this layer sees, itself included; 0: all. */
int64_t arch_reach(const struct arch *a, int64_t layer);
/* Returns how many first tokens of a text every layer sees whole, at most max_positions. */
int64_t arch_full_attention(const struct arch *a);
/* Returns the factor of the scores q . k. */
float arch_attn_scale(const struct arch *a);
/* Returns factor, one of the others in struct arch, with 1 for 0. */
float arch_factor(double factor);

/* Returns r, the channels of a head that a rope rotates. */
int64_t arch_rotary_dim(const struct arch *a);
/* Returns the angle per position of pair i, 0 <= i < r/2, with the scaling of the rope kind:
 * rope_theta^(-2 i / r) without one. */
double arch_inv_freq(const struct arch *a, int64_t i);
/* Returns the columns of a rotary table: r/2, or twice that if sliding layers have a rope of their
 * own, whose columns are the second half. */
int64_t arch_rope_columns(const struct arch *a);
/* Returns the first column of a layer's rope. */
int64_t arch_rope_column(const struct arch *a, int64_t layer);
/* Computes cos, sin [T, arch_rope_columns] f32 for positions first .. first + T - 1 in host memory,
 * with angles in f64. Su et al. 2021; llama3, yarn (Peng et al. 2023) and longrope (Ding et al.
 * 2024) as in transformers' modeling_rope_utils. With the last two, both are multiplied by
 * rope_attention. */
void arch_rope_table(const struct arch *a, int64_t first, int64_t T, float *cos,
                     float *sin);

/* A field of config.json with its values in two models. */
struct arch_difference {
    char field[64]; /* "rope_theta", "layer 3: sliding_window" */
    double a, b;
};
/* Finds the first field that decides what a model of the same family computes and in which a and
 * b differ; false: none. Not compared are token ids, the dtype, and limits of the length. */
bool arch_differs(struct arch_difference *out, const struct arch *a, const struct arch *b);

#endif
