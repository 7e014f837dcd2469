/* SPDX-License-Identifier: MIT
 *
 * Instruction sets, and the names of what is compiled once for each of them.
 *
 * A kernel is one source file that meson compiles several times, with the flags of a set
 * and -DISA=<its name> (kernels/simd/meson.build). Inside, kernels/simd/simd.h gives the
 * widest vectors that the flags allow. Every external symbol of such a file is wrapped in
 * ISA_NAME(), so that the builds can be linked into one program:
 *
 *     void ISA_NAME(cpu_fill)(struct dev_ops *o);    is cpu_fill_avx512 with -DISA=avx512
 *
 * Code that exists once asks isa_supported() which of the builds this processor can run.
 * All functions here are thread-safe. */
#ifndef WKVQ_ISA_H
#define WKVQ_ISA_H

#include <stdbool.h>

/* Ascending within a family: a processor that supports AVX-512 supports AVX2. The sets
 * after AVX-512 and after NEON extend these, and each other only where it is said. */
enum isa {
    ISA_PLAIN,      /* any processor */
    ISA_AVX2,       /* x86-64: AVX2, FMA, F16C */
    ISA_AVX512,     /* AVX-512 F, BW, VL, DQ */
    ISA_AVX512VNNI, /* products of pairs of 16-bit integers */
    ISA_AVX512BF16, /* products of pairs of BF16 */
    ISA_NEON,       /* any aarch64 */
    ISA_NEONDOT,    /* products of four 8-bit integers */
    ISA_NEONI8MM,   /* NEONDOT, and products of 8-bit matrices */
    ISA_NEONBF16,   /* products of pairs of BF16 */
    N_ISAS
};

/* True if this processor's products of pairs of BF16 (ISA_AVX512BF16, ISA_NEONBF16) are faster than
 * those of F32. */
bool isa_bf16_pays(void);
/* True if this build has kernels for the set and this processor can run them. */
bool isa_supported(enum isa isa);
/* "plain", "avx2", "avx512vnni" and so on; static. */
const char *isa_text(enum isa isa);

#define ISA_JOIN_EXPANDED(name, isa) name##_##isa
#define ISA_JOIN(name, isa) ISA_JOIN_EXPANDED(name, isa)
/* Only inside files that are compiled with -DISA=... */
#define ISA_NAME(name) ISA_JOIN(name, ISA)

#endif
