/* SPDX-License-Identifier: MIT */
#include "convert/format/sizes.h"

#include "convert/format/bitpack.h"

double shape_linear_bytes(int64_t out, int64_t in, struct lin_format f)
{
    const int64_t groups = weight_groups(in, f.group_size);
    if (f.bits >= 16)
        return 2 * (double)out * (double)in;
    return (double)out *
           (double)(bitpack_bytes(in, f.bits) + 2 * groups + bitpack_bytes(groups, f.bits));
}

double shape_weight_bits(const struct arch *a, const struct weight_spec *w)
{
    double bytes = 0;
    for (int64_t i = 0; i < a->n_layers; i++)
        for (int l = 0; l < N_LIN; l++)
            bytes +=
                shape_linear_bytes(arch_out(a, l), arch_in(a, l), weight_format(w, i, l));
    return 8 * bytes / ((double)arch_block_params(a) * (double)a->n_layers);
}
