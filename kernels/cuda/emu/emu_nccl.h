/* SPDX-License-Identifier: MIT
 *
 * The part of NCCL that kernels/cuda calls, on the host: what a group sends is moved by the
 * functions of struct ranks at its end. It is there if emu_card()->nccl is not 0. */
#ifndef WKVQ_EMU_NCCL_H
#define WKVQ_EMU_NCCL_H

#include "kernels/cuda/emu/emu_runtime.h"

extern "C" {
#include "kernels/base/ranks.h"
}

/* Returns whether the library is there. r is borrowed for its transfers. */
bool emu_nccl_open(const struct ranks *r);
/* The function of this name; NULL without. */
void *emu_nccl_symbol(const char *name);

#endif
