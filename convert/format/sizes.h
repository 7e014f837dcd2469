/* SPDX-License-Identifier: MIT
 *
 * Computes effective bits from shapes alone, as an artifact would measure them. Pure
 * functions. */
#ifndef WKVQ_ARTIFACT_SIZES_H
#define WKVQ_ARTIFACT_SIZES_H

#include "calib/model/arch.h"
#include "kernels/tensor/qtensor.h"

/* Returns the bytes of an [out][in] projection's codes, fp16 scales and packed zeros; 2 per
 * weight at 16 bits. */
double shape_linear_bytes(int64_t out, int64_t in, struct lin_format f);
/* Returns that for all projections, in bits per weight. */
double shape_weight_bits(const struct arch *a, const struct weight_spec *w);

#endif
