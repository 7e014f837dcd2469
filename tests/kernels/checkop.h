/* SPDX-License-Identifier: MIT
 *
 * Compares every operation of the cpu device with the reference, as checkasm does in other
 * projects. For each operation, one function walks shapes, types and input patterns. This
 * frame allocates guarded and poisoned tensors, runs both devices, compares the results and
 * reports differences. Both devices compute in the same memory: the host's, or memory that
 * a GPU shares with the host. */
#ifndef WKVQ_CHECKOP_H
#define WKVQ_CHECKOP_H

#include "kernels/base/rng.h"
#include "kernels/dev_ops.h"
#include "tests/close.h"

enum ck_side { SIDE_REF, SIDE_CPU, N_SIDES };

enum ck_pattern {
    PAT_RANDOM,
    PAT_ZERO,
    PAT_ONE,
    PAT_LARGE,
    PAT_SMALL,
    PAT_ALTERNATING,
    PAT_MIXED, /* magnitudes from 1e-4 to 1e4 side by side */
    /* Small differences far from 0: sums cancel, and fp16 offsets are inexact. */
    PAT_OFFSET,
    N_PATTERNS
};
extern const char *const ck_pattern_name[N_PATTERNS];

struct ck_block; /* one guarded allocation: checkop.c */

struct ck {
    struct dev *dev[N_SIDES];
    const char *op, *level;
    char name[160]; /* of the current case */
    uint64_t seed;
    struct rng rng; /* restarted from seed and case number, so that cases are independent */
    struct ck_block *blocks;
    int n_listed, n_cases, n_failed, case_failed; /* n_cases: that ran */
    int every; /* 1; n > 1 runs one case of n, drawn with the seed, for slow tools */
    bool quiet, bench;
    bool first; /* the program ends at the first failure */
    double seconds[N_SIDES], began;
    int64_t runs[N_SIDES];
};

/* What a byte beside a tensor, or of an output, holds: NaN in both act types, so that a read
 * of it shows. */
#define CK_POISON 0xff

/* An output of each side, or an input that an operation changes. */
struct ck_out {
    struct tensor side[N_SIDES];
};

/* False if --every leaves this case out. */
bool ck_begin(struct ck *c, const char *fmt, ...)
    __attribute__((format(printf, 2, 3), warn_unused_result));
/* Checks inputs and guards, and releases the memory. */
void ck_end(struct ck *c);

/* A shape, with `pad` elements of poison after each row. */
struct ck_shape {
    enum dtype dtype;
    int n_dims;
    int64_t dim[3], pad;
};
/* pad, or 8 for rows of 16 n columns, which then lie at multiples of 8 elements, as wide accesses
 * want them. Rows of 8 n columns at other distances exclude such accesses. */
static inline int64_t ck_pad(int64_t cols, int64_t pad)
{
    return cols % 16 ? pad : 8;
}
struct ck_shape ck_1d(int64_t n);
struct ck_shape ck_2d(enum dtype t, int64_t rows, int64_t cols, int64_t pad);
struct ck_shape ck_3d(enum dtype t, int64_t n0, int64_t n1, int64_t n2, int64_t pad);

/* Inputs. They must not change, which ck_end() verifies. */
struct tensor ck_in(struct ck *c, struct ck_shape s, enum ck_pattern p);
/* ... with values in [lo, hi). */
struct tensor ck_in_range(struct ck *c, struct ck_shape s, double lo, double hi);
/* ... to be filled by the caller (with ck_set) before the operation runs. */
struct tensor ck_in_empty(struct ck *c, struct ck_shape s);
/* Outputs: poison on both sides. */
struct ck_out ck_poisoned(struct ck *c, struct ck_shape s);
/* Operands that change: the same random values on both sides. */
struct ck_out ck_twins(struct ck *c, struct ck_shape s, enum ck_pattern p);
/* ... with the values of x. */
struct ck_out ck_copies(struct ck *c, const struct tensor *x, int64_t pad);

double ck_get(const struct tensor *x, int64_t row, int64_t col); /* act types, F16 */
void ck_set(const struct tensor *x, int64_t row, int64_t col, double v);
int64_t ck_rows(const struct tensor *x);
int64_t ck_cols(const struct tensor *x);
/* Zeroed working memory until ck_end(). */
double *ck_doubles(struct ck *c, int64_t n);

/* Memory that both devices and the host reach; NULL without. */
void *ck_memory(const struct ck *c, size_t bytes);
void ck_memory_free(const struct ck *c, void *p);

/* Records the inputs, which must not change from here on. CK_EACH calls it. */
void ck_seal(struct ck *c);

/* Runs the body for the reference, then for the cpu; with --bench it is timed and
 * repeated. */
#define CK_EACH(c, s) for (int s = ck_first(c); s < N_SIDES; s = ck_next(c, s))
int ck_first(struct ck *c);
int ck_next(struct ck *c, int side);
/* Checks that a call succeeded. */
void ck_ok(struct ck *c, enum err e);

/* Compare the two sides: as sums of n terms, or bit for bit. */
void ck_close(struct ck *c, const char *what, const struct ck_out *o,
              const double *magnitude, int64_t n);
void ck_close_scalar(struct ck *c, const char *what, const double *side, double magnitude,
                     int64_t n);
void ck_bits(struct ck *c, const char *what, const struct ck_out *o);
void ck_fail(struct ck *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* --- the operations ------------------------------------------------------------------ */

struct ck_test {
    const char *op;
    void (*run)(struct ck *c);
};
extern const struct ck_test ck_gemm_tests[], ck_norm_tests[], ck_attn_tests[],
    ck_mlp_tests[], ck_weight_tests[], ck_quant_tests[], ck_channel_tests[],
    ck_refine_tests[], ck_train_tests[], ck_far_tests[]; /* end with op NULL */

/* --- broken kernels, for --self-test ------------------------------------------------- */

enum ck_fault {
    FAULT_NONE,
    FAULT_VALUE,   /* one element is a little wrong */
    FAULT_NAN,     /* one element is NaN */
    FAULT_INF,     /* one element is infinite */
    FAULT_PAST,    /* a write after the last row */
    FAULT_BETWEEN, /* a write between two rows */
    FAULT_BEFORE,  /* a write before the first row */
    FAULT_SKIP,    /* nothing is written */
    FAULT_INPUT,   /* an input is changed */
    N_FAULTS
};

/* Runs op on a cpu device that makes the fault. Returns the number of failures found
 * (checkfault.c). */
int ck_self_test(uint64_t seed);
/* Runs one operation's test. */
void ck_run(struct ck *c, const struct ck_test *t);

#endif
