/* SPDX-License-Identifier: MIT
 *
 * The inside of the cpu device. Kernels are compiled once per instruction set
 * (kernels/simd/isa.h), and each set's kernels put themselves into the operation table,
 * from the plainest set up. Memory, GEMM and the choice of the set exist once. */
#ifndef WKVQ_CPU_H
#define WKVQ_CPU_H

#include "kernels/dev_ops.h"
#include "kernels/simd/isa.h"

#include <stdbool.h>

/* True if this build has kernels of the device for the set and this processor runs them. */
bool cpu_has_isa(enum isa isa);
/* The set that devices opened now use: the last such one, but not AVX512BF16 where F32 is
 * faster. */
enum isa cpu_best_isa(void);
/* Devices opened from now on use no set after isa, and isa itself even if it is slower; for tests.
 * N_ISAS: any set. */
void cpu_limit_isa(enum isa isa);
/* True unless such a limit is in force. */
bool cpu_uses_all_isas(void);

/* Working memory that is kept between calls, so that only the first call with a shape
 * allocates. An operation owns the slots it uses while it runs. */
enum cpu_slot { SLOT_A, SLOT_B, SLOT_GEMM, N_SLOTS };

struct cpu_gemm; /* opaque: cpu_gemm.c */

struct cpu {
    struct cpu_gemm *gemm;
    struct dev_ops ref; /* for shapes that have no kernel here */
    void *slot[N_SLOTS];
    size_t slot_bytes[N_SLOTS];
};

/* Returns a slot of at least `bytes`, 64-byte aligned and undefined; NULL after
 * dev_fail(). */
void *cpu_scratch(struct dev *d, enum cpu_slot slot, size_t bytes);

/* Calls row(ctx, r) for every r in [0, rows), on all threads. cols is the work of a row in
 * elements, which decides how many rows make a chunk. */
void cpu_run_rows(struct dev *d, int64_t rows, int64_t cols,
                  void (*row)(const void *ctx, int64_t r), const void *ctx);
/* Calls part(ctx, begin, end) for pieces of [0, n), which depend on n only. */
void cpu_run_flat(struct dev *d, int64_t n,
                  void (*part)(const void *ctx, int64_t begin, int64_t end),
                  const void *ctx);

/* isa: the last set that the device uses. */
enum err cpu_gemm_open(struct cpu_gemm **out, enum isa isa, struct pool *pool);
void cpu_gemm_close(struct cpu_gemm **g);
/* "bf16 GEMM: ...; f32 GEMM: ..." */
void cpu_gemm_about(const struct cpu_gemm *g, char *text, size_t bytes);
bool cpu_gemm_has_bf16(const struct cpu_gemm *g); /* faster than f32 */
void cpu_gemm(struct dev *d, enum gemm_kind kind, const struct tensor *c,
              const struct tensor *a, const struct tensor *b, bool accumulate);

/* Each puts the kernels of one instruction set into the table. */
void cpu_fill_plain(struct dev_ops *o);
void cpu_fill_avx2(struct dev_ops *o);
void cpu_fill_avx512(struct dev_ops *o);
void cpu_fill_avx512bf16(struct dev_ops *o);
void cpu_fill_neon(struct dev_ops *o);
void cpu_fill_neonbf16(struct dev_ops *o);
/* Attention by products of BF16 pairs. */
void cpu_fill_attn_pairs_avx512bf16(struct dev_ops *o);
void cpu_fill_attn_pairs_neonbf16(struct dev_ops *o);

#ifdef ISA
void ISA_NAME(cpu_fill_elem)(struct dev_ops *o);
void ISA_NAME(cpu_fill_norm)(struct dev_ops *o);
void ISA_NAME(cpu_fill_weight)(struct dev_ops *o);
void ISA_NAME(cpu_fill_kv)(struct dev_ops *o);
void ISA_NAME(cpu_fill_channel)(struct dev_ops *o);
void ISA_NAME(cpu_fill_engine)(struct dev_ops *o);
void ISA_NAME(cpu_fill_train)(struct dev_ops *o);
void ISA_NAME(cpu_fill_refine)(struct dev_ops *o);
void ISA_NAME(cpu_fill_attn)(struct dev_ops *o);
#endif

static inline bool cpu_bf16(const struct tensor *x)
{
    return x->dtype == DT_BF16;
}

/* Address of element i of an act tensor. */
static inline void *cpu_at(const struct tensor *x, int64_t i)
{
    return (char *)x->data + i * (cpu_bf16(x) ? 2 : 4);
}

static inline void *cpu_row(const struct tensor *x, int64_t r)
{
    return cpu_at(x, r * x->ld);
}

#endif
