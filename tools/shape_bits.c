/* SPDX-License-Identifier: MIT */
#include "tools/shape_bits.h"

#include "convert/artifact/bitpack.h"

/* Bytes of an [out][in] projection's codes, fp16 scales and packed zeros. */
static double linear_bytes(int64_t out, int64_t in, const struct weight_spec *w)
{
    const int64_t g = w->group_size;
    const int64_t groups = g && g < in ? (in + g - 1) / g : 1;
    return (double)out * (double)(bitpack_bytes(in, w->bits) + 2 * groups +
                                  bitpack_bytes(groups, w->bits));
}

double shape_weight_bits(const struct arch *a, const struct weight_spec *w)
{
    double bytes = 0, weights = 0;
    if (w->bits == 16)
        return 16;
    for (int l = 0; l < N_LIN; l++) {
        bytes += linear_bytes(arch_out(a, l), arch_in(a, l), w);
        weights += (double)arch_out(a, l) * (double)arch_in(a, l);
    }
    return 8 * bytes / weights;
}
