/* SPDX-License-Identifier: MIT
 *
 * Effective bits from shapes alone, as an artifact would measure them. */
#ifndef WKVQ_SHAPE_BITS_H
#define WKVQ_SHAPE_BITS_H

#include "calib/model/arch.h"
#include "kernels/tensor/qtensor.h"

/* Codes, scales and zeros of all projections, in bits a weight; 16 at 16 bits. */
double shape_weight_bits(const struct arch *a, const struct weight_spec *w);

#endif
