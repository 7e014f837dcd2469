/* SPDX-License-Identifier: MIT
 *
 * The settings of the weight and KV quantizers, and struct block_quant, which calibration
 * hands to packing. All memory is host memory.
 *
 * "block" in this header is a transformer block (a layer of the model). */
#ifndef WKVQ_QTENSOR_H
#define WKVQ_QTENSOR_H

#include "kernels/tensor/mix.h"

#include <stdbool.h>
#include <stdint.h>

/* The seven projections, in the order used everywhere. */
enum lin { LIN_Q, LIN_K, LIN_V, LIN_O, LIN_GATE, LIN_UP, LIN_DOWN, N_LIN };

/* "q", "k", ..., "down"; and the Hugging Face module path inside a layer,
 * "self_attn.q_proj", ..., "mlp.down_proj". */
extern const char *const lin_name[N_LIN];
extern const char *const lin_module[N_LIN];

/* WEIGHT_GIVEN: codes, scales and zeros are the checkpoint's, which another tool quantized. */
enum weight_method { WEIGHT_RTN, WEIGHT_LWC, WEIGHT_GPTQ, WEIGHT_GIVEN };
enum weight_round { ROUND_NEAREST, ROUND_LEARNED };

struct weight_spec {
    enum weight_method method;
    int bits;           /* 2..8, or 16: weights are not quantized */
    int64_t group_size; /* input columns per group; 0: the whole row */
    enum weight_round round;
    int scale_bits; /* significant bits of a scale, 1..11; 0: all 11 of fp16 */
    /* Embedding and output head: 2..8 bits; 0 or 16: not quantized. */
    int head_bits;
    int64_t head_group; /* columns per group; 0: the whole row */
    /* Projections with other bits or group_size; borrowed, may be NULL. */
    const struct mix *mixed;
    /* Scales and gains of norms were refined end to end. Codes then no longer follow from the
     * source weight and its scale, and gains are F32. */
    bool refined;
    /* Inputs of the projections of all layers: 2..8 bits, each token rounded by itself; 0 or 16:
     * not rounded. The method leaves them alone. They are for comparisons with W4A4. */
    int act_bits;
};

/* Returns true if the inputs of projections are rounded. */
bool weight_rounds_inputs(const struct weight_spec *w);

/* How one layer's projection is quantized. */
struct lin_format {
    int bits;           /* 2..8, or 16: not quantized */
    int64_t group_size; /* input columns per group; 0: the whole row */
    int scale_bits;     /* as in struct weight_spec */
};
struct lin_format weight_format(const struct weight_spec *w, int64_t layer, int lin);
/* How embedding and head are quantized. */
struct lin_format head_format(const struct weight_spec *w);
bool weight_quantizes_head(const struct weight_spec *w);
/* True if any projection of any layer, or of this layer, is quantized. */
bool weight_quantizes(const struct weight_spec *w);
bool weight_quantizes_layer(const struct weight_spec *w, int64_t layer);

/* True if calibration chooses the codes (GPTQ, learned rounding, refinement), so that they do
 * not follow from the weight and its scale. */
bool weight_chooses_codes(const struct weight_spec *w);

/* KV_CHANNEL: keys per channel in blocks of tokens, values per token (simulation only). */
enum kv_method { KV_TOKEN, KV_CHANNEL_TOKEN, KV_CHANNEL };
enum key_stage { KEY_POST_ROPE, KEY_PRE_ROPE };
/* The tensors that a Hadamard matrix rotates inside their heads before quantization, as a
 * set of bits. Values are rotated by the weights, into which the checkpoint's reader multiplies
 * the matrix; keys and queries by dev_hadamard() after the rotary embedding. */
enum kv_rotate { ROTATE_NONE, ROTATE_V, ROTATE_K, ROTATE_KV };

/* The cache that serves the model: this runtime's, or that of another engine, which calibration
 * simulates (kernels/dev_engine.h): llama.cpp's types q4_0 and q4_1, the FP8 of vLLM, SGLang and
 * TensorRT-LLM, transformers' QuantizedCache with quanto, and vLLM's int4_per_token_head. */
enum kv_target {
    TARGET_WKVQ,
    TARGET_Q4_0,
    TARGET_Q4_1,
    TARGET_FP8,
    TARGET_QUANTO4,
    TARGET_VLLM_INT4,
    N_KV_TARGETS
};
/* "wkvq", "llama.cpp-q4_0", ... */
extern const char *const kv_target_name[N_KV_TARGETS];

struct kv_spec {
    enum kv_method method;
    int bits; /* 2..8, or 16: the cache is not quantized */
    /* Channels per group inside a head, capped at head_dim. For keys under KV_CHANNEL:
     * tokens per group, not capped. */
    int64_t group_size;
    enum key_stage key_stage;
    bool past_only; /* a token's own key and value are in full precision */
    int64_t window; /* most recent tokens in full precision, >= 1; used with past_only */
    int64_t sink;   /* first tokens in full precision, >= 0 */
    bool learn;     /* learn shift and smoothing; false keeps their start values */
    enum kv_rotate rotate;
    enum kv_target target; /* fixes all other members, see kv_target_spec() */
    /* Layers whose keys or values have other bits or group_size; borrowed, may be NULL. */
    const struct mix *mixed;
};

/* How one layer's keys or values are quantized. */
enum kv_side { KV_K, KV_V };
struct kv_format {
    int bits;           /* 2..8, or 16: not quantized */
    int64_t group_size; /* as in struct kv_spec */
};
struct kv_format kv_format(const struct kv_spec *kv, int64_t layer, enum kv_side side);
/* True if keys or values of any layer, or of this layer, are quantized. */
bool kv_quantizes(const struct kv_spec *kv);
bool kv_quantizes_layer(const struct kv_spec *kv, int64_t layer);
/* Sets all bits to 16; the other settings stay. */
void kv_set_unquantized(struct kv_spec *kv);

/* Channels of values that llama.cpp rotates together. */
#define KV_TARGET_V_ROTATION 64
/* The settings that describe another engine's cache. */
struct kv_spec kv_target_spec(enum kv_target target);
/* ERR_SUPPORT if the engine's cache does not hold, or does not rotate, heads of head_dim
 * channels; kv_target_fits() is false then. */
bool kv_target_fits(const struct kv_spec *kv, int64_t head_dim);
enum err kv_target_check(const struct kv_spec *kv, int64_t head_dim);
/* True for llama.cpp's caches: a smoothing and a shift of rotated values can be learned and folded
 * into the weights (`wkvq fold`). */
bool kv_target_folds(enum kv_target target);
/* True if the cache has one calibrated scale for a layer's keys and one for its values. Smoothing
 * is then that scale in every channel, and shift 0. */
bool kv_target_has_scales(enum kv_target target);
/* Tokens that the cache collects in full precision before it quantizes them together; a query sees
 * those that began with its own in full precision. 1: each token is quantized by itself. */
int64_t kv_target_residual(enum kv_target target);
/* ERR_USAGE if in a window of T tokens no query reads anything quantized; name: of T's setting. */
enum err kv_target_check_length(const char *name, enum kv_target target, int64_t T);
/* True if parameters of the cache start from the ranges of keys and values. */
bool kv_needs_ranges(const struct kv_spec *kv);

/* Groups in a row of `in` columns. */
int64_t weight_groups(int64_t in, int64_t group_size);
/* Columns of a weight's group: group_size capped at `in`, or `in` if it is 0. */
int64_t weight_group(int64_t in, int64_t group_size);
/* Channels of a KV group: group_size capped at head_dim, or head_dim if it is 0. */
int64_t kv_group(int64_t head_dim, int64_t group_size);

/* ERR_SUPPORT if heads of head_dim channels cannot be rotated as kv says. */
enum err kv_rotate_check(const struct kv_spec *kv, int64_t head_dim);

struct pool; /* kernels/base/pool.h */

/* Scales and zeros of one projection, and its codes if weight_chooses_codes(). Otherwise
 * codes are not stored, because quant_weight_code() gives them from the source weight. */
struct qlinear {
    int64_t out, in, groups;
    struct lin_format format;
    uint16_t *scales; /* [out][groups] fp16, owned */
    uint8_t *zeros;   /* [out][groups] 0..2^bits-1, owned */
    uint8_t *codes;   /* [out][in] 0..2^bits-1, owned; may be NULL, see above */
};

/* The gains of norms that refinement trains: of attention's input, the MLP's input, queries and
 * keys, what attention and the MLP add to the residual stream, and the norm before the head. Each
 * architecture has some of them. The first N_BLOCK_GAINS belong to a block. */
enum norm_gain {
    GAIN_ATTENTION,
    GAIN_MLP,
    GAIN_Q,
    GAIN_K,
    GAIN_ATTENTION_OUT,
    GAIN_MLP_OUT,
    GAIN_FINAL,
    N_GAINS
};
#define N_BLOCK_GAINS GAIN_FINAL

/* The result of calibrating one block. */
struct block_quant {
    struct kv_spec kv;
    struct qlinear lin[N_LIN]; /* scales NULL: the weight is not quantized */
    int64_t n_channels;        /* kv heads * head_dim */
    float *k_scale, *k_shift;  /* [n_channels] smoothing and shift of keys, owned */
    float *v_scale, *v_shift;  /* [n_channels] of values, owned; all are 1 and 0, except
                                  under KV_CHANNEL_TOKEN and kv_target_has_scales() */
    /* Refined weights of norms, in the form that the checkpoint has, owned; arch_gain() returns
     * their lengths. NULL: the checkpoint's. The final norm's is in the last layer. */
    float *gain[N_GAINS];
};

/* Allocates scales and zeros, all of them 0. ERR_MEMORY. Free with qlinear_free(). */
enum err qlinear_alloc(struct qlinear *q, int64_t out, int64_t in,
                       struct lin_format format);
/* Columns of a group. */
int64_t qlinear_group(const struct qlinear *q);
/* True if q is for a weight [out][in] in this format; scale_bits need not agree, because a
 * reader of scales does not depend on how they were rounded. */
bool qlinear_fits(const struct qlinear *q, int64_t out, int64_t in,
                  struct lin_format format);
/* Allocates codes; q must have been allocated. ERR_MEMORY. */
enum err qlinear_alloc_codes(struct qlinear *q);
/* w [out][in] = (code - zero) scale; q must have codes. quant_weight_code() of such a value
 * gives its code again, because product and quotient are exact. Rows are shared among the
 * threads of the pool, which may be NULL. */
void qlinear_values(float *w, const struct qlinear *q, struct pool *pool);
void qlinear_free(struct qlinear *q);
/* Allocates smoothing 1 and shift 0; the projections stay empty. ERR_MEMORY. */
enum err block_quant_alloc(struct block_quant *b, int64_t n_channels);
void block_quant_free(struct block_quant *b); /* accepts zeroed and half-built ones */

#endif
