/* SPDX-License-Identifier: MIT
 *
 * The part of cuDNN that kernels/cuda calls, on the host. A graph of its operations is computed
 * one by one, in the types of its tensors. It is there if emu_card()->cudnn is not 0. It has three
 * configurations for a graph. The engine of the first sums in no fixed order, as the notes say, and
 * gives NaN. A plan fills its working memory with NaN. Tensors that are not aligned, and a plan
 * that is destroyed before it has run, are reported as mistakes. */
#ifndef WKVQ_EMU_CUDNN_H
#define WKVQ_EMU_CUDNN_H

#include "kernels/cuda/emu/emu_runtime.h"

/* The function of this name; NULL without. */
void *emu_cudnn_symbol(const char *name);

#endif
