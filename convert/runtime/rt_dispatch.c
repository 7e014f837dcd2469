/* SPDX-License-Identifier: MIT
 *
 * Chooses the build of the inner loops that this machine runs. */
#include "convert/runtime/rt_kernels.h"

extern const struct rt_kernels rt_kernels_plain;
#if defined(__x86_64__)
extern const struct rt_kernels rt_kernels_avx2, rt_kernels_avx512, rt_kernels_avx512vnni;
#elif defined(__aarch64__)
extern const struct rt_kernels rt_kernels_neon, rt_kernels_neondot, rt_kernels_neoni8mm;
#endif

const struct rt_kernels *rt_kernels_of(enum isa isa)
{
    static const struct rt_kernels *const table[N_ISAS] = {
        [ISA_PLAIN] = &rt_kernels_plain,
#if defined(__x86_64__)
        [ISA_AVX2] = &rt_kernels_avx2,
        [ISA_AVX512] = &rt_kernels_avx512,
        [ISA_AVX512VNNI] = &rt_kernels_avx512vnni,
#elif defined(__aarch64__)
        [ISA_NEON] = &rt_kernels_neon,
        [ISA_NEONDOT] = &rt_kernels_neondot,
        [ISA_NEONI8MM] = &rt_kernels_neoni8mm,
#endif
    };
    return isa_supported(isa) ? table[isa] : NULL;
}

const struct rt_kernels *rt_kernels_best(void)
{
    static const enum isa fastest_first[] = {ISA_AVX512VNNI, ISA_AVX512,  ISA_AVX2,
                                             ISA_NEONI8MM,   ISA_NEONDOT, ISA_NEON};
    for (size_t i = 0; i < ARRAY_LEN(fastest_first); i++)
        if (rt_kernels_of(fastest_first[i]))
            return rt_kernels_of(fastest_first[i]);
    return &rt_kernels_plain;
}
