/* SPDX-License-Identifier: MIT */
#include "kernels/cpu/cpu.h"

void CPU_NAME(cpu_fill_attn)(struct dev_ops *o)
{
}
