/* SPDX-License-Identifier: MIT
 *
 * Apart from emu_kernels.cc: both have a struct wgroup and its functions. */
#include "kernels/cuda/cuda_weight.cu"
