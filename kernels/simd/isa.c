/* SPDX-License-Identifier: MIT
 *
 * Which instruction sets this processor has. */
#include "kernels/simd/isa.h"

#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#if defined(__x86_64__)
static bool has_avx2(void)
{
    __builtin_cpu_init();
    /* F16C needs no question: every processor with AVX2 has it. */
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq");
}

/* From Sapphire Rapids on, Intel's processors multiply pairs of BF16 in their AMX units, and
 * vdpbf16ps has a quarter of the rate of an F32 multiply-add, so half of its products. */
bool isa_bf16_pays(void)
{
    __builtin_cpu_init();
    return !__builtin_cpu_is("intel") || __builtin_cpu_is("cooperlake");
}

bool isa_supported(enum isa isa)
{
    switch (isa) {
    case ISA_AVX2:
        return has_avx2();
    case ISA_AVX512:
        return has_avx512();
    case ISA_AVX512VNNI:
        return has_avx512() && __builtin_cpu_supports("avx512vnni");
    case ISA_AVX512BF16:
        return has_avx512() && __builtin_cpu_supports("avx512bf16");
    default:
        return isa == ISA_PLAIN;
    }
}
#elif defined(__aarch64__)
bool isa_bf16_pays(void)
{
    return true;
}

bool isa_supported(enum isa isa)
{
    const unsigned long has = getauxval(AT_HWCAP), has2 = getauxval(AT_HWCAP2);
    switch (isa) {
    case ISA_NEONDOT:
        return has & HWCAP_ASIMDDP;
    case ISA_NEONI8MM:
        return has & HWCAP_ASIMDDP && has2 & HWCAP2_I8MM;
    case ISA_NEONBF16:
        return has2 & HWCAP2_BF16;
    default:
        return isa == ISA_PLAIN || isa == ISA_NEON;
    }
}
#else
bool isa_bf16_pays(void)
{
    return false;
}

bool isa_supported(enum isa isa)
{
    return isa == ISA_PLAIN;
}
#endif

const char *isa_text(enum isa isa)
{
    static const char *const text[N_ISAS] = {"plain",      "avx2",       "avx512",
                                             "avx512vnni", "avx512bf16", "neon",
                                             "neondot",    "neoni8mm",   "neonbf16"};
    return text[isa];
}
