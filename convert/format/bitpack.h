/* SPDX-License-Identifier: MIT
 *
 * Packs codes into bytes and back; pure functions. Codes of b bits form a little-endian bit
 * stream per row: code i occupies bits [i b, (i + 1) b), bit 0 being the lowest of byte 0.
 * A row starts on a byte. bitpack.c draws it. */
#ifndef WKVQ_BITPACK_H
#define WKVQ_BITPACK_H

#include <stddef.h>
#include <stdint.h>

/* Returns the bytes of a row of n codes; does not overflow for any n >= 0. */
int64_t bitpack_bytes(int64_t n, int bits);
/* dst [bitpack_bytes(n, bits)] = codes [n], one per byte; bits 1..8. A code above 2^bits -
 * 1 is a mistake of the caller. Unused high bits of the last byte are 0. */
void bitpack_row(uint8_t *dst, const uint8_t *codes, int64_t n, int bits);
/* codes [n] = src; unused high bits are ignored. */
void bitpack_unpack_row(uint8_t *codes, const uint8_t *src, int64_t n, int bits);

#endif
