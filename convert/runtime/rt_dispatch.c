/* SPDX-License-Identifier: MIT
 *
 * Which build of the inner loops this machine runs. */
#include "convert/runtime/rt_kernels.h"

#include <string.h>

extern const struct rt_kernels rt_kernels_plain;
#if defined(__x86_64__)
extern const struct rt_kernels rt_kernels_avx2, rt_kernels_avx512, rt_kernels_avx512vnni;
#endif

static bool has_avx2(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return false;
#endif
}

static bool has_avx512(void)
{
#if defined(__x86_64__)
    return has_avx2() && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq");
#else
    return false;
#endif
}

static bool has_vnni(void)
{
#if defined(__x86_64__)
    return has_avx512() && __builtin_cpu_supports("avx512vnni");
#else
    return false;
#endif
}

const struct rt_kernels *rt_kernels_named(const char *name)
{
#if defined(__x86_64__)
    if (!strcmp(name, "avx512vnni") && has_vnni())
        return &rt_kernels_avx512vnni;
    if (!strcmp(name, "avx512") && has_avx512())
        return &rt_kernels_avx512;
    if (!strcmp(name, "avx2") && has_avx2())
        return &rt_kernels_avx2;
#endif
    return strcmp(name, "plain") ? NULL : &rt_kernels_plain;
}

const struct rt_kernels *rt_kernels_best(void)
{
    return rt_kernels_named(has_vnni()     ? "avx512vnni"
                            : has_avx512() ? "avx512"
                            : has_avx2()   ? "avx2"
                                           : "plain");
}
