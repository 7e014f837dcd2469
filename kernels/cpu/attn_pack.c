/* SPDX-License-Identifier: MIT
 *
 * Packs blocks of tokens into the layouts that kernels/cpu/attn_tile.h multiplies. */
#include "kernels/cpu/attn_tile.h"

/* Copies one head of a token, converted to the kernels' element type and padded with zeros
 * to dp channels, so that inner loops have no remainder. Zeros add nothing to a product. */
static void pack_row(elem *dst, const void *src, bool bf16, int64_t d, int64_t dp)
{
#if ATTN_PAIRS
    (void)bf16; /* F32 tensors go to the F32 kernels */
    memcpy(dst, src, (size_t)d * sizeof(*dst));
#else
    for (int64_t c = 0; c < d; c += VL)
        f32_put(dst, c, d, act_get(src, bf16, c, d));
#endif
    memset(dst + d, 0, (size_t)(dp - d) * sizeof(*dst));
}

void pack_rows(elem *dst, const struct tensor *x, int64_t t0, int64_t h, int64_t dp)
{
    const int64_t d = x->dim[2];
    int64_t rows = x->dim[0] - t0 < TILE ? x->dim[0] - t0 : TILE;
    for (int64_t i = 0; i < rows; i++)
        pack_row(dst + i * dp, cpu_at(x, (t0 + i) * x->ld + h * d), cpu_bf16(x), d, dp);
    memset(dst + rows * dp, 0, (size_t)((TILE - rows) * dp) * sizeof(*dst));
}

/* With BF16 a word holds one channel of two neighbouring tokens, the even one low: the
 * instruction multiplies such pairs (vdpbf16ps, bfdot). With F32 rows stay as they are. */
void pack_operands(uint32_t *dst, const elem *src, int64_t dp)
{
#if ATTN_PAIRS
    for (int64_t k = 0; k < TILE / 2; k++)
        for (int64_t c = 0; c < dp; c += VL) {
            const elem *a = src + 2 * k * dp + c;
            pairs_zip(dst + k * dp + c, a, a + dp);
        }
#else
    memcpy(dst, src, (size_t)(TILE * dp) * sizeof(*dst));
#endif
}

#if VL == 16
/* Transposes 16 x 16 words in registers: four rounds, which exchange words between
 * registers that are 1, 2, 4 and 8 apart. */
static void transpose_16x16(uint32_t *dst, int64_t ld_dst, const uint32_t *src,
                            int64_t ld_src)
{
    __m512i r[16], s[16];
    for (int i = 0; i < 16; i++)
        r[i] = _mm512_loadu_si512(src + i * ld_src);
    for (int i = 0; i < 16; i += 2) {
        s[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        s[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int k = 0; k < 2; k++) {
            r[i + 2 * k] = _mm512_unpacklo_epi64(s[i + k], s[i + k + 2]);
            r[i + 2 * k + 1] = _mm512_unpackhi_epi64(s[i + k], s[i + k + 2]);
        }
    for (int i = 0; i < 16; i += 8)
        for (int k = 0; k < 4; k++) {
            s[i + k] = _mm512_shuffle_i32x4(r[i + k], r[i + k + 4], 0x88);
            s[i + k + 4] = _mm512_shuffle_i32x4(r[i + k], r[i + k + 4], 0xdd);
        }
    for (int k = 0; k < 8; k++) {
        _mm512_storeu_si512(dst + k * ld_dst, _mm512_shuffle_i32x4(s[k], s[k + 8], 0x88));
        _mm512_storeu_si512(dst + (k + 8) * ld_dst,
                            _mm512_shuffle_i32x4(s[k], s[k + 8], 0xdd));
    }
}
#endif

void transpose_words(uint32_t *dst, int64_t ld_dst, const uint32_t *src, int64_t ld_src,
                     int64_t rows, int64_t cols)
{
    for (int64_t r0 = 0; r0 < rows; r0 += 16)
        for (int64_t c0 = 0; c0 < cols; c0 += 16) {
            const int64_t n_r = rows - r0 < 16 ? rows - r0 : 16;
            const int64_t n_c = cols - c0 < 16 ? cols - c0 : 16;
#if VL == 16
            if (n_r == 16 && n_c == 16) {
                transpose_16x16(dst + c0 * ld_dst + r0, ld_dst, src + r0 * ld_src + c0,
                                ld_src);
                continue;
            }
#endif
            for (int64_t c = c0; c < c0 + n_c; c++)
                for (int64_t r = r0; r < r0 + n_r; r++)
                    dst[c * ld_dst + r] = src[r * ld_src + c];
        }
}
