/* SPDX-License-Identifier: MIT
 *
 * Effective bits from shapes alone, as an artifact would measure them. */
#ifndef WKVQ_ARTIFACT_SIZES_H
#define WKVQ_ARTIFACT_SIZES_H

#include "calib/model/arch.h"
#include "kernels/tensor/qtensor.h"

/* Bytes of an [out][in] projection's codes, fp16 scales and packed zeros; 2 a weight at 16
 * bits. */
double shape_linear_bytes(int64_t out, int64_t in, struct lin_format f);
/* Of all projections, in bits a weight. */
double shape_weight_bits(const struct arch *a, const struct weight_spec *w);

#endif
