/* SPDX-License-Identifier: MIT
 *
 * Architectures of well-known models, for plans and benchmarks without a checkpoint. */
#ifndef WKVQ_SHAPES_H
#define WKVQ_SHAPES_H

#include "calib/model/arch.h"

#define SHAPE_CHOICES "smollm2-135m|tinyllama-1.1b|llama-2-7b|llama-2-13b"

/* One of SHAPE_CHOICES, with room for more positions than the model has, because what is
 * measured may be longer. Errors: ERR_USAGE. */
enum err arch_of_shape(struct arch *out, const char *name);
/* The positions that the model of a known shape has; 0 for other names. */
int64_t arch_shape_positions(const char *name);

#endif
