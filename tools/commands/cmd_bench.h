/* SPDX-License-Identifier: MIT
 *
 * `wkvq bench`: figures against the machine's limits. */
#ifndef WKVQ_CMD_BENCH_H
#define WKVQ_CMD_BENCH_H

#include "tools/cli/opt.h"

/* Every operation: time, bytes or flops a second, share of the measured limit, and what was
 * picked. */
enum err bench_kernels(struct args *a);
/* One training step by part, beside the matrix products of the same shapes alone. */
enum err bench_calibrate(struct args *a);
/* Tokens a second of the packed runtime on an artifact, and its share of the bandwidth. */
enum err bench_decode(struct args *a);

#endif
