/* SPDX-License-Identifier: MIT
 *
 * Codes to bytes and back; pure functions. b-bit codes form a little-endian bit stream per
 * row: code i occupies bits [i b, i b + b), bit 0 being the lowest of byte 0; a row starts
 * on a byte. At 4 bits: the low nibble is the even column. */
#ifndef WKVQ_BITPACK_H
#define WKVQ_BITPACK_H

#include <stddef.h>
#include <stdint.h>

/* Bytes of a row of n codes. */
int64_t bitpack_bytes(int64_t n, int bits);
/* bits 1..8; codes above 2^bits - 1 are a caller's mistake. Unused high bits are 0. */
void bitpack_row(uint8_t *dst, const uint8_t *codes, int64_t n, int bits);
void bitpack_unpack_row(uint8_t *codes, const uint8_t *src, int64_t n, int bits);

#endif
