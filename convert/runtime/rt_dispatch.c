/* SPDX-License-Identifier: MIT
 *
 * Which build of the inner loops this machine runs. */
#include "convert/runtime/rt_kernels.h"

extern const struct rt_kernels rt_kernels_plain;
#if defined(__x86_64__)
extern const struct rt_kernels rt_kernels_avx2, rt_kernels_avx512;
#endif

const struct rt_kernels *rt_kernels_best(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        return &rt_kernels_avx512;
    if (avx2)
        return &rt_kernels_avx2;
#endif
    return &rt_kernels_plain;
}
