/* SPDX-License-Identifier: MIT
 *
 * Rows of codes as bit streams. The bits of a byte are drawn from the highest to the
 * lowest:
 *
 *            byte 0                  byte 1                  byte 2
 *   4 bits  | c1 c1 c1 c1 c0 c0 c0 c0 | c3 c3 c3 c3 c2 c2 c2 c2 | c5 ...
 *   3 bits  | c2 c2 c1 c1 c1 c0 c0 c0 | c5 c4 c4 c4 c3 c3 c3 c2 | c7 ...
 *   2 bits  | c3 c3 c2 c2 c1 c1 c0 c0 | c7 c7 c6 c6 c5 c5 c4 c4 | c11 ...
 *
 * At 4 bits the low half of a byte is the even column; read as a little-endian 32-bit word,
 * four bytes hold columns 8 w .. 8 w + 7 from the lowest nibble up. Eight codes always fill
 * `bits` whole bytes, so any eighth code starts on a byte. */
#include "convert/format/bitpack.h"

#include <string.h>

int64_t bitpack_bytes(int64_t n, int bits)
{
    return n / 8 * bits + (n % 8 * bits + 7) / 8;
}

static void pack_nibbles(uint8_t *dst, const uint8_t *codes, int64_t n)
{
    for (int64_t i = 0; i < n / 2; i++)
        dst[i] = (uint8_t)(codes[2 * i] | codes[2 * i + 1] << 4);
    if (n % 2)
        dst[n / 2] = codes[n - 1];
}

static void unpack_nibbles(uint8_t *codes, const uint8_t *src, int64_t n)
{
    for (int64_t i = 0; i < n / 2; i++) {
        codes[2 * i] = src[i] & 15;
        codes[2 * i + 1] = src[i] >> 4;
    }
    if (n % 2)
        codes[n - 1] = src[n / 2] & 15;
}

/* Unpacks eight codes at a time, as far as eight bytes can be read from where they begin, and
 * returns how many codes that were. The codes of a word are spread over its bytes in three
 * steps: its lanes are halved, and the upper half of the codes in a lane moves to the upper
 * half of the lane.
 *
 *   64 bits  |                                 c7 c6 c5 c4 c3 c2 c1 c0 |
 *   32 bits  |             c7 c6 c5 c4 |                   c3 c2 c1 c0 |
 *   16 bits  |     c7 c6 |     c5 c4 |           c3 c2 |         c1 c0 |
 *    8 bits  |   c7 |   c6 |   c5 |   c4 |   c3 |   c2 |   c1 |   c0 | */
static int64_t unpack_words(uint8_t *codes, const uint8_t *src, int64_t n, unsigned bits)
{
    const int64_t left = bitpack_bytes(n, (int)bits) - 8;
    const uint64_t four = ((uint64_t)1 << 4 * bits) - 1;
    const uint64_t two = (((uint64_t)1 << 2 * bits) - 1) * 0x0000000100000001;
    const uint64_t one = (((uint64_t)1 << bits) - 1) * 0x0001000100010001;
    int64_t i = 0;
    for (int64_t at = 0; at <= left && i + 8 <= n; at += bits, i += 8) {
        uint64_t w;
        memcpy(&w, src + at, sizeof(w));
        w = (w & four) | (w << (32 - 4 * bits) & four << 32);
        w = (w & two) | (w << (16 - 2 * bits) & two << 16);
        w = (w & one) | (w << (8 - bits) & one << 8);
        memcpy(codes + i, &w, sizeof(w));
    }
    return i;
}

void bitpack_row(uint8_t *dst, const uint8_t *codes, int64_t n, int bits)
{
    if (bits == 4) {
        pack_nibbles(dst, codes, n);
        return;
    }
    if (bits == 8) {
        memcpy(dst, codes, (size_t)n);
        return;
    }
    unsigned hold = 0, held = 0; /* bits not yet written, lowest first */
    for (int64_t i = 0; i < n; i++) {
        hold |= (unsigned)codes[i] << held;
        held += (unsigned)bits;
        if (held >= 8) {
            *dst++ = (uint8_t)hold;
            hold >>= 8;
            held -= 8;
        }
    }
    if (held)
        *dst = (uint8_t)hold;
}

void bitpack_unpack_row(uint8_t *codes, const uint8_t *src, int64_t n, int bits)
{
    if (bits == 4) {
        unpack_nibbles(codes, src, n);
        return;
    }
    if (bits == 8) {
        memcpy(codes, src, (size_t)n);
        return;
    }
    const int64_t whole = unpack_words(codes, src, n, (unsigned)bits);
    src += whole / 8 * bits;
    const unsigned mask = (1u << bits) - 1;
    unsigned hold = 0, held = 0;
    for (int64_t i = whole; i < n; i++) {
        if (held < (unsigned)bits) {
            hold |= (unsigned)*src++ << held;
            held += 8;
        }
        codes[i] = (uint8_t)(hold & mask);
        hold >>= bits;
        held -= (unsigned)bits;
    }
}
