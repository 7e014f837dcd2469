/* SPDX-License-Identifier: MIT
 *
 * What is quantized and how: the settings of a weight and a KV quantizer, and the hand-over
 * from calibration to packing: the scales and zeros of one block. Host memory throughout.
 */
#ifndef WKVQ_QTENSOR_H
#define WKVQ_QTENSOR_H

#include "kernels/tensor/mix.h"

#include <stdbool.h>
#include <stdint.h>

/* The seven projections, in the order used everywhere. */
enum lin { LIN_Q, LIN_K, LIN_V, LIN_O, LIN_GATE, LIN_UP, LIN_DOWN, N_LIN };

/* "q", "k", ..., "down", and the Hugging Face module path inside a layer,
 * "self_attn.q_proj", ..., "mlp.down_proj". */
extern const char *const lin_name[N_LIN];
extern const char *const lin_module[N_LIN];

enum weight_method { WEIGHT_RTN, WEIGHT_LWC, WEIGHT_GPTQ };
enum weight_round { ROUND_NEAREST, ROUND_LEARNED };

struct weight_spec {
    enum weight_method method;
    int bits;           /* 2..8, or 16: weights are left alone */
    int64_t group_size; /* input columns per group; 0 = the whole row */
    enum weight_round round;
    const struct mix *mixed; /* projections that differ in bits or group_size, borrowed;
                                NULL: none */
};

/* How one layer's projection is quantized. */
struct lin_format {
    int bits;           /* 2..8, or 16: left alone */
    int64_t group_size; /* as above */
};
struct lin_format weight_format(const struct weight_spec *w, int64_t layer, int lin);
/* Some projection of some layer has fewer than 16 bits; of this one. */
bool weight_quantizes(const struct weight_spec *w);
bool weight_quantizes_layer(const struct weight_spec *w, int64_t layer);

/* Codes are part of the result: they do not follow from the weight and its scale. */
bool weight_chooses_codes(const struct weight_spec *w);

/* KV_CHANNEL: keys per channel in blocks of tokens, values per token (simulation only). */
enum kv_method { KV_TOKEN, KV_CHANNEL_TOKEN, KV_CHANNEL };
enum key_stage { KEY_POST_ROPE, KEY_PRE_ROPE };
/* What a Hadamard matrix turns inside its heads before it is quantized; bits. Values by
 * weights that have it folded in (a checkpoint's reader does that), keys and queries by
 * dev_hadamard after the rotary embedding. */
enum kv_rotate { ROTATE_NONE, ROTATE_V, ROTATE_K, ROTATE_KV };

struct kv_spec {
    enum kv_method method;
    int bits;           /* 2..8, or 16: the cache is left alone */
    int64_t group_size; /* channels per group inside a head; capped at head_dim. Keys under
                           KV_CHANNEL: tokens of a block, not capped */
    enum key_stage key_stage;
    bool past_only; /* the current token's own key and value in full precision */
    int64_t window; /* most recent tokens in full precision, the current one included, >= 1;
                       ignored without past_only */
    int64_t sink;   /* first tokens in full precision, >= 0 */
    bool learn;     /* learn shift and smoothing; false keeps their start values */
    enum kv_rotate rotate;
    const struct mix *mixed; /* layers whose keys or values differ in bits or group_size,
                                borrowed; NULL: none */
};

/* How one layer's keys or values are quantized. */
enum kv_side { KV_K, KV_V };
struct kv_format {
    int bits;           /* 2..8, or 16: left alone */
    int64_t group_size; /* as above */
};
struct kv_format kv_format(const struct kv_spec *kv, int64_t layer, enum kv_side side);
/* Keys or values of some layer have fewer than 16 bits; of this one. */
bool kv_quantizes(const struct kv_spec *kv);
bool kv_quantizes_layer(const struct kv_spec *kv, int64_t layer);
/* 16 bits everywhere; the rest stays. */
void kv_leave_alone(struct kv_spec *kv);

/* Groups in a row of `in` columns. */
int64_t weight_groups(int64_t in, int64_t group_size);
/* Channels in a KV group. */
int64_t kv_group(int64_t head_dim, int64_t group_size);

/* ERR_SUPPORT where heads of head_dim channels cannot be rotated as kv says. */
enum err kv_rotate_check(const struct kv_spec *kv, int64_t head_dim);

/* Scales and zeros of one projection, and its codes where weight_chooses_codes().
 * Elsewhere they are not kept: they follow from the source weight by quant_weight_code().
 */
struct qlinear {
    int64_t out, in, groups;
    struct lin_format format;
    uint16_t *scales; /* [out][groups] fp16 bits, owned */
    uint8_t *zeros;   /* [out][groups] 0..2^bits-1, owned */
    uint8_t *codes;   /* [out][in] 0..2^bits-1, owned; NULL: by quant_weight_code() */
};

/* What calibration knows about one block. */
struct block_quant {
    struct kv_spec kv;
    struct qlinear lin[N_LIN]; /* empty (scales NULL) where the weight is left alone */
    int64_t n_channels;        /* kv heads * head_dim */
    float *k_scale,
        *k_shift; /* [n_channels] s and shift of K, owned; 1 and 0 but for KV_CHANNEL_TOKEN
                   */
    float *v_scale, *v_shift; /* [n_channels] of V */
};

enum err qlinear_alloc(struct qlinear *q, int64_t out, int64_t in,
                       struct lin_format format);
/* Columns of a group. */
int64_t qlinear_group(const struct qlinear *q);
/* q is for a weight [out][in] in this format. */
bool qlinear_fits(const struct qlinear *q, int64_t out, int64_t in,
                  struct lin_format format);
/* Room for codes; scales are there. */
enum err qlinear_alloc_codes(struct qlinear *q);
/* w [out][in] = (code - zero) scale; q has codes. quant_weight_code() of such a value,
 * under the same scale and zero, is its code again: the product and the quotient are exact.
 */
void qlinear_values(float *w, const struct qlinear *q);
void qlinear_free(struct qlinear *q);
/* Allocates s = 1, shift = 0. The projections stay empty. */
enum err block_quant_alloc(struct block_quant *b, int64_t n_channels);
void block_quant_free(struct block_quant *b); /* accepts a zeroed or half-built one */

#endif
