/* SPDX-License-Identifier: MIT */
#include "convert/export/gguf/gguf_blocks.h"

#include "kernels/base/half.h"

uint16_t gguf_minimum(uint8_t zero, uint16_t scale)
{
    return f16_from_f32(0.0f - (float)zero * f16_to_f32(scale)); /* 0 stays +0 */
}

int64_t gguf_row_source(int64_t r, int64_t head_dim)
{
    const int64_t in_head = r % head_dim;
    return r - in_head + in_head % 2 * (head_dim / 2) + in_head / 2;
}

static void put_u16(uint8_t *dst, uint16_t v)
{
    dst[0] = (uint8_t)(v & 0xff);
    dst[1] = (uint8_t)(v >> 8);
}

static void put_nibbles(uint8_t *dst, const uint8_t *codes)
{
    for (int j = 0; j < GGUF_BLOCK / 2; j++)
        dst[j] = (uint8_t)((codes[j] & 0xf) | codes[j + GGUF_BLOCK / 2] << 4);
}

static void put_high_bits(uint8_t *dst, const uint8_t *codes)
{
    uint32_t bits = 0;
    for (int j = 0; j < GGUF_BLOCK; j++)
        bits |= (uint32_t)(codes[j] >> 4 & 1) << j;
    for (int i = 0; i < 4; i++)
        dst[i] = (uint8_t)(bits >> 8 * i & 0xff);
}

static void pack_block(uint8_t *dst, enum gguf_type t, const uint8_t *codes, uint8_t zero,
                       uint16_t scale)
{
    put_u16(dst, scale);
    if (t == GGUF_Q8_0) {
        for (int j = 0; j < GGUF_BLOCK; j++)
            dst[2 + j] = (uint8_t)(codes[j] - zero); /* two's complement */
        return;
    }
    put_u16(dst + 2, gguf_minimum(zero, scale));
    if (t == GGUF_Q5_1)
        put_high_bits(dst + 4, codes);
    put_nibbles(dst + (t == GGUF_Q5_1 ? 8 : 4), codes);
}

void gguf_pack_row(uint8_t *dst, enum gguf_type t, const struct gguf_row *row)
{
    const uint64_t bytes = gguf_row_bytes(t, GGUF_BLOCK);
    for (int64_t c = 0; c < row->n; c += GGUF_BLOCK, dst += bytes) {
        const int64_t g = c / row->group_size;
        pack_block(dst, t, row->codes + c, row->zeros[g], row->scales[g]);
    }
}
