/* SPDX-License-Identifier: MIT
 *
 * The GPUs of this machine, shared among the cells that run on it at the same time. */
#ifndef WKVQ_SWEEP_GPUS_H
#define WKVQ_SWEEP_GPUS_H

#include <stdint.h>

#define SWEEP_GPU_MAX 96 /* a number, or the name of a GPU or of a part of one */

/* Writes the CUDA_VISIBLE_DEVICES of slot 0, 1, ...: one entry of the list in the environment, or
 * one of the system's GPUs. Slots beyond the last GPU begin with the first again. "" if there is
 * one GPU or none, or if an entry is too long. */
void sweep_gpu(char out[SWEEP_GPU_MAX], int slot);
/* Returns how many of the cells that run at the same time share the GPU that has most. */
int64_t sweep_gpu_cells(int64_t parallel);

#endif
