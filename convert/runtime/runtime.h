/* SPDX-License-Identifier: MIT
 *
 * The small decoder over packed weights and a packed KV cache: an independent witness that
 * shares no forward code with calibration. Weights are used from their codes; the cache
 * holds codes and fp16 pairs, and the current token(s) in full precision. */
#ifndef WKVQ_RUNTIME_H
#define WKVQ_RUNTIME_H

#include "convert/artifact/reader.h"
#include "kernels/base/pool.h"
#include "kernels/base/rng.h"

struct runtime; /* opaque; one caller */

struct runtime_settings {
    int threads;        /* 0 = all cores */
    int64_t max_tokens; /* capacity of the cache */
    int kv_bits;        /* 0 = as the artifact says; 16 = full-precision cache */
};

/* Borrows a. Errors: ERR_MEMORY, ERR_SUPPORT. */
enum err runtime_open(struct runtime **out, const struct artifact *a,
                      const struct runtime_settings *s);
void runtime_close(struct runtime **r);
/* Forget the cache. */
void runtime_reset(struct runtime *r);
/* Remember the cache as it is now, and go back to it: what several texts begin with is
 * computed once. One mark at a time; without one, rewinding forgets everything. The tokens
 * that are kept in full precision are copied, the packed ones are not. Errors: ERR_MEMORY.
 */
enum err runtime_mark(struct runtime *r);
void runtime_rewind(struct runtime *r);
/* Process n tokens after those in the cache as one chunk: inside it keys and values are
 * full precision, before it quantized (the window and sink settings keep theirs). Without
 * past_only all but the sink is quantized, whatever the chunk. logits
 * host: [n][V] f32 if all, else [V] of the last; NULL: none. n = 1 is decode. ERR_USAGE
 * when the cache is full. */
enum err runtime_forward(struct runtime *r, float *logits, bool all, const int32_t *ids,
                         int64_t n);
/* Dequantized K^ and V^ of layer i for tokens in the cache, [length][K*d] f32 host, for
 * verification; tokens still kept in full precision come as they are. */
enum err runtime_kv(const struct runtime *r, int64_t layer, float *k, float *v);
/* For verification: fn is called with the hidden states x [n][D] of the chunk before every
 * block, and before the head with layer = n_layers; it may replace them. NULL: none. */
void runtime_watch(struct runtime *r,
                   void (*fn)(void *ctx, int64_t layer, float *x, int64_t n), void *ctx);
/* For measuring: the linear layers of a chunk of n tokens, all blocks in order, and nothing
 * else; what the activations are is left open. Errors: ERR_MEMORY. */
enum err runtime_products(struct runtime *r, int64_t n);
/* Bytes allocated for the packed cache, and per element really used at full capacity. */
uint64_t runtime_kv_bytes(const struct runtime *r);
double runtime_kv_bits(const struct runtime *r);

/* Sampling. temperature 0: greedy. top_k 0 and top_p 1: off. */
struct sampler {
    float temperature, top_p;
    int64_t top_k;
    uint64_t seed;
};
/* The next token. rng is the caller's, seeded once from s->seed. top_k cuts before top_p;
 * the most likely token always stays. Errors: ERR_NUMERIC for a logit that is not finite.
 */
enum err runtime_sample(int32_t *id, const struct sampler *s, struct rng *rng,
                        const float *logits, int64_t vocab);

#endif
