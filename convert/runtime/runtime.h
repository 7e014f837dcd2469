/* SPDX-License-Identifier: MIT
 *
 * A small decoder over packed weights and a quantized KV cache. It shares no forward code
 * with calibration, so that verification compares two implementations. Weights are used
 * from their codes; the cache holds codes and F16 pairs.
 *
 * A runtime belongs to one caller at a time and uses its own threads. Its results do not
 * depend on their number. All arrays are host memory; V is the vocabulary, D the model
 * width, K kv heads of width d. */
#ifndef WKVQ_RUNTIME_H
#define WKVQ_RUNTIME_H

#include "convert/artifact/reader.h"
#include "kernels/base/pool.h"
#include "kernels/base/rng.h"

struct runtime; /* opaque */

struct runtime_settings {
    int threads;        /* 0: all cores */
    int64_t max_tokens; /* capacity of the cache */
    int kv_bits;        /* 0: as the artifact says; 16: F32 cache */
    int act_bits; /* of projections' inputs. 0: as the artifact says; 16: not rounded */
    /* DT_F32, or DT_BF16: a chunk's products with packed weights may round activations to
     * 16 bits. They become integers that share a power of two in 128 columns, with an error
     * of at most 2^-14 of the largest; in the norm of such a block that is a fifth of
     * BF16's. Products of one token, and all on a machine without AVX512-VNNI, stay F32. */
    enum dtype act;
};

/* Whether this machine rounds activations if `act` is DT_BF16. */
bool runtime_rounds(void);
/* Borrows a until the runtime is closed. *out is untouched on error. Errors: ERR_MEMORY,
 * ERR_USAGE for kv_bits that the artifact does not have, ERR_SUPPORT for the cache of another
 * engine (kv.target) unless kv_bits is 16, and for a max_tokens at which the architecture is not
 * implemented. */
enum err runtime_open(struct runtime **out, const struct artifact *a,
                      const struct runtime_settings *s);
/* Accepts NULL and sets NULL. */
void runtime_close(struct runtime **r);

/* Empties the cache and forgets the mark. */
void runtime_reset(struct runtime *r);
/* Mark the state of the cache, and return to it: a common prefix of several texts is
 * computed once. There is one mark; without one, rewinding empties the cache. Only tokens
 * kept in full precision are copied. Errors: ERR_MEMORY. */
enum err runtime_mark(struct runtime *r);
void runtime_rewind(struct runtime *r);

/* Processes n tokens after those in the cache as one chunk; n = 1 is decoding. Queries see
 * the chunk in full precision and earlier tokens quantized, except those that kv.window and
 * kv.sink keep. Without past_only they see everything quantized except the sink.
 *   ids     [n]
 *   logits  [n][V] if all, else [V] of the last token; NULL: not wanted
 * Errors: ERR_USAGE if the tokens do not fit the cache, ERR_FORMAT for an id outside the
 * vocabulary, ERR_MEMORY. The cache keeps its length on error. */
enum err runtime_forward(struct runtime *r, float *logits, bool all, const int32_t *ids,
                         int64_t n);

/* Dequantized keys k and values v of a layer, [length][K*d] each, for verification; either
 * may be NULL. Tokens that are still kept in full precision are copied from there. Errors:
 * ERR_SHAPE for a layer that does not exist, ERR_MEMORY. */
enum err runtime_kv(const struct runtime *r, int64_t layer, float *k, float *v);
/* Calls fn with the hidden states x [n][D] before every block, and before the head with
 * layer = n_layers; fn may replace them. For verification. NULL: no calls. */
void runtime_watch(struct runtime *r,
                   void (*fn)(void *ctx, int64_t layer, float *x, int64_t n), void *ctx);
/* Runs the projections of a chunk of n tokens, all blocks in order, and nothing else. For
 * benchmarks: their inputs are meaningless. Errors: ERR_MEMORY. */
enum err runtime_products(struct runtime *r, int64_t n);

/* Bytes allocated for the cache. */
uint64_t runtime_kv_bytes(const struct runtime *r);
/* Bits allocated per element at full capacity, F32 copies included. */
double runtime_kv_bits(const struct runtime *r);

struct sampler {
    float temperature; /* 0: greedy */
    float top_p;       /* 1: off */
    int64_t top_k;     /* 0: off; applied before top_p */
    uint64_t seed;
};
/* Samples the next token from logits [vocab]. The caller owns rng and seeds it once from
 * s->seed. The most likely token is never cut off. Errors: ERR_NUMERIC for a logit that is
 * not finite, ERR_MEMORY. */
enum err runtime_sample(int32_t *id, const struct sampler *s, struct rng *rng,
                        const float *logits, int64_t vocab);

#endif
