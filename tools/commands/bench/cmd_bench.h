/* SPDX-License-Identifier: MIT
 *
 * `wkvq bench`: measurements relative to the machine's limits. */
#ifndef WKVQ_CMD_BENCH_H
#define WKVQ_CMD_BENCH_H

#include "tools/cli/opt.h"

/* Measures every operation: time, bytes or flops per second, share of the measured limit,
 * and the kernel in use. */
enum err bench_kernels(struct args *a);
/* Measures one training step by parts, and the matrix products of the same shapes alone. */
enum err bench_calibrate(struct args *a);
/* Measures one step of end-to-end refinement by parts. */
enum err bench_refine(struct args *a);
/* Measures the tokens per second of the packed runtime on an artifact, and its share of the
 * memory bandwidth. */
enum err bench_decode(struct args *a);

#endif
