/* SPDX-License-Identifier: MIT
 *
 * Rounds rows of weights to nearest: the definitions of kernels/tensor/quant.h for a row at
 * a time, written so that compilers vectorize them for any CPU. Bit for bit the same. */
#ifndef WKVQ_QUANTIZE_H
#define WKVQ_QUANTIZE_H

#include "convert/artifact/writer.h"
#include "kernels/base/pool.h"

#include <stdbool.h>
#include <stdint.h>

/* scales, zeros [groups] = those of round to nearest for w [n]; scales are F16. Returns
 * false if w holds a non-finite value. */
bool quant_row_rtn(uint16_t *scales, uint8_t *zeros, const float *w, int64_t n,
                   struct lin_format f);
/* codes [n] = quant_weight_code of each w under the given scales and zeros; group_size 0:
 * the whole row. Returns false, with codes unset, if w holds a non-finite value. */
bool quant_row_codes(uint8_t *codes, const float *w, const uint16_t *scales,
                     const uint8_t *zeros, int64_t n, int bits, int64_t group_size);
/* quant_block_rtn with the threads of p (NULL: only this one); the same bits. */
enum err quant_block_rtn_on(struct pool *p, struct block_quant *out, const struct arch *a,
                            const struct block_src *src, int64_t layer,
                            const struct weight_spec *w, const struct kv_spec *kv);

#endif
