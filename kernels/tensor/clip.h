/* SPDX-License-Identifier: MIT
 *
 * The search of clipping factors for one group of weights. */
#ifndef WKVQ_CLIP_H
#define WKVQ_CLIP_H

#include "kernels/tensor/qtensor.h"

/* One group: weights w [n], and the second moments m [n] of their inputs (NULL: all 1). */
struct clip_group {
    const float *w;
    const double *m;
    int64_t n;
    struct lin_format format; /* its group_size is not used */
};

/* *gamma, *beta = the factors that minimize sum m (w - w^)^2, with the group's range clipped
 * to [beta min(0, min w), gamma max(0, max w)]. They are `most`, 0.95, 0.90 .. 0.45, where
 * `most` is 1, or a factor below it whose logit is finite. */
void clip_search(float *gamma, float *beta, const struct clip_group *g, float most);

/* *scale (fp16 bits), *zero of the group under the factors that clip_search() finds with
 * `most` 1. */
void clip_scale(uint16_t *scale, uint8_t *zero, const struct clip_group *g);

#endif
