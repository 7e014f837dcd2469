/* SPDX-License-Identifier: MIT
 *
 * Bytes and effective bits of the formats, from shapes alone. Pure functions. */
#ifndef WKVQ_SIZES_H
#define WKVQ_SIZES_H

#include "calib/model/arch.h"
#include "kernels/tensor/qtensor.h"

/* --- weights ------------------------------------------------------------------------ */

/* Return the bytes of an [out][in] projection's codes (two for each weight at 16 bits), of its
 * fp16 scales and packed zeros (none at 16 bits), and of both. */
uint64_t shape_linear_codes(int64_t out, int64_t in, struct lin_format f);
uint64_t shape_linear_scales(int64_t out, int64_t in, struct lin_format f);
uint64_t shape_linear_bytes(int64_t out, int64_t in, struct lin_format f);
/* Returns that for all projections, in bits per weight. */
double shape_weight_bits(const struct arch *a, const struct weight_spec *w);

/* --- the cache ---------------------------------------------------------------------- */

/* Returns the bytes of one token's keys (or values) in one layer, as the runtime allocates
 * them: for each kv head ceil(head_dim bits / 8) bytes of codes, and for each of its groups
 * four bytes, the F16 pair h, m. At 16 bits: two bytes per element, as an F16 cache takes
 * (this runtime uses F32). */
int64_t kv_row_bytes(const struct arch *a, struct kv_format f);
/* The codes' part of that; everything at 16 bits. */
int64_t kv_row_code_bytes(const struct arch *a, struct kv_format f);
/* Returns the bytes of one token's keys and values in all layers. */
int64_t kv_token_bytes(const struct arch *a, const struct kv_spec *kv);
/* Returns that in bits per element, the mean over layers, keys and values. With kv.method
 * channel, keys are counted in whole blocks of tokens. */
double kv_mean_bits(const struct arch *a, const struct kv_spec *kv);
/* Returns the bytes of a cache for `batch` sequences of `tokens` tokens. Full-precision copies
 * (window, sink) are not counted. */
uint64_t kv_cache_bytes(const struct arch *a, const struct kv_spec *kv, int64_t batch,
                        int64_t tokens);

/* --- inference ---------------------------------------------------------------------- */

/* Bytes of a model at inference: the terms of the paper's table, and the ones missing there. */
struct memory_terms {
    uint64_t projections, weight_scales; /* codes (or weights), and scales and zeros */
    uint64_t rest;                       /* embedding and head, and norms at 16 bits */
    uint64_t cache, cache_scales;        /* codes (or elements), and scales and minima */
};
struct memory_terms memory_terms_of(const struct arch *a, const struct weight_spec *w,
                                    const struct kv_spec *kv, int64_t batch,
                                    int64_t length);
uint64_t memory_total(const struct memory_terms *t);
/* Returns bytes as the paper counts them: projections and cache, without scales, embedding
 * and head. */
uint64_t memory_paper(const struct memory_terms *t);

#endif
