/* SPDX-License-Identifier: MIT
 *
 * How kernels/dev.c reaches the cuda device, built with it or not. */
#ifndef WKVQ_CUDA_FILL_H
#define WKVQ_CUDA_FILL_H

#include "kernels/dev_ops.h"

/* Fill d->ops (and priv, about, preferred_act) with the first GPU's; the host's part of the work
 * has that many threads, 0 for all cores. ERR_SUPPORT without CUDA in the build or a driver on the
 * machine. */
enum err cuda_fill(struct dev *d, int threads);
/* Whether this build has it. */
bool cuda_built(void);

/* The same kernels emulated, on host memory: linked to tests only. Opens ref for its GEMM.
 */
enum err cuda_emu_fill(struct dev *d, int threads);

#endif
