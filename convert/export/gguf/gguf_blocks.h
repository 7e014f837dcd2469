/* SPDX-License-Identifier: MIT
 *
 * Quantized rows in GGUF's block types. Pure functions, thread-safe. A block holds 32
 * columns, which belong to one group: weight = (q - z) h, with h fp16.
 *
 *   type  bytes  content                                                  weight
 *   Q4_1  20     d fp16, m fp16, 16 bytes: code j | code j + 16 << 4      d q + m
 *   Q5_1  24     d fp16, m fp16, bit 4 of all codes as u32, as Q4_1       d q + m
 *   Q8_0  34     d fp16, 32 int8: q - z                                   d (q - z)
 *
 * d = h. m = fp16(-z h), which is exact if h has at most 7 significant bits for Q4_1 (6 for
 * Q5_1), and otherwise off by at most z h 2^-11. Q8_0 is always exact. */
#ifndef WKVQ_GGUF_BLOCKS_H
#define WKVQ_GGUF_BLOCKS_H

#include "convert/export/gguf/gguf_file.h"

/* One row of a projection, unpacked. */
struct gguf_row {
    const uint8_t *codes;   /* [n] below 16 for Q4_1, 32 for Q5_1, 128 for Q8_0 */
    const uint8_t *zeros;   /* [groups] in the same range */
    const uint16_t *scales; /* [groups] fp16 */
    int64_t n;              /* columns, a multiple of 32 */
    int64_t group_size;     /* a multiple of 32; the last group may be shorter */
};

/* dst [gguf_row_bytes(t, n)] = the row as Q4_1, Q5_1 or Q8_0. */
void gguf_pack_row(uint8_t *dst, enum gguf_type t, const struct gguf_row *row);
/* Returns m of Q4_1 and Q5_1: the fp16 nearest to -z h, ties to even; infinite beyond fp16's
 * range. */
uint16_t gguf_minimum(uint8_t zero, uint16_t scale);

/* Returns the row of a projection that becomes row r where GGUF wants the two halves of each
 * head interleaved: row (head, 2 i + p) is row (head, p head_dim / 2 + i). */
int64_t gguf_row_source(int64_t r, int64_t head_dim);

#endif
