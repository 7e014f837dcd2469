/* SPDX-License-Identifier: MIT
 *
 * Rows of weights to scales, zeros and codes: kernels/tensor/quant.h a row at a time,
 * written so that compilers vectorize it for any CPU. */
#ifndef WKVQ_QUANTIZE_H
#define WKVQ_QUANTIZE_H

#include "convert/artifact/writer.h"
#include "kernels/base/pool.h"

#include <stdbool.h>
#include <stdint.h>

/* Round to nearest: scales, zeros [groups] of w [n]. false: w holds a non-finite value. */
bool quant_row_rtn(uint16_t *scales, uint8_t *zeros, const float *w, int64_t n, int bits,
                   int64_t group_size);
/* codes [n] of w [n]: quant_weight_code of each. false: w holds a non-finite value. */
bool quant_row_codes(uint8_t *codes, const float *w, const uint16_t *scales,
                     const uint8_t *zeros, int64_t n, int bits, int64_t group_size);
/* quant_block_rtn by all threads of p (NULL: this one); same bits. */
enum err quant_block_rtn_on(struct pool *p, struct block_quant *out, const struct arch *a,
                            const struct block_src *src, int64_t layer,
                            const struct weight_spec *w, const struct kv_spec *kv);

#endif
