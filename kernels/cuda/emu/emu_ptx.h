/* SPDX-License-Identifier: MIT
 *
 * The PTX instructions that kernels contain. Their text is interpreted, so that a mistake in
 * it shows as one in the code around it does. */
#ifndef WKVQ_EMU_PTX_H
#define WKVQ_EMU_PTX_H

#include "kernels/cuda/emu/emu.h"

namespace emu
{

/* ldmatrix of two 8 x 8 matrices: operands %0 and %1 are r[0] and r[1], %2 is this lane's
 * row. Lanes 0 to 7 give the rows of the first matrix, lanes 8 to 15 those of the second. */
void ptx_ldmatrix(const char *text, unsigned *const (&r)[2], const shared<uint16_t> &row,
                  int line);

/* mma of a 16 x 16 by a 16 x 8 matrix: operands %0 to %3 are c, %4 to %7 a, %8 and %9 b. */
void ptx_mma(const char *text, float *const (&c)[4], const unsigned (&a)[4],
             const unsigned (&b)[2], int line);

} // namespace emu

#endif
