/* SPDX-License-Identifier: MIT
 *
 * Rounding by addition, for host, SIMD and GPU. */
#ifndef WKVQ_ROUNDER_H
#define WKVQ_ROUNDER_H

/* x + ROUNDER - ROUNDER rounds |x| < 2^22 to nearest, ties to even, as rintf does. Between 2^23 and
 * 2^24 neighbouring floats differ by 1. Compilers vectorize it for any CPU, and a GPU is faster at
 * two additions than at the instruction. */
#define ROUNDER 0x1.8p23f
/* The bits of ROUNDER: those of x + ROUNDER, as an integer, minus them are round(x). */
#define ROUNDER_BITS 0x4b400000

#endif
