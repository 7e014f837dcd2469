/* SPDX-License-Identifier: MIT
 *
 * Compiled with -DRT_ISA=plain, avx2 or avx512 and that set's flags. Vectors are the
 * compilers' own (vector_size), as wide as the set's registers. */
#include "convert/runtime/rt_kernels.h"

#include "convert/artifact/bitpack.h"
#include "kernels/tensor/quant.h"

#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define VL 16
#elif defined(__AVX2__)
#define VL 8
#else
#define VL 4
#endif

typedef float vf __attribute__((vector_size(VL * 4)));
typedef int32_t vi __attribute__((vector_size(VL * 4)));
typedef uint16_t vh __attribute__((vector_size(VL * 2)));
typedef uint8_t vb __attribute__((vector_size(VL)));

/* Contraction is off in the whole tree; sums of products may use the instruction. */
static inline vf madd(vf a, vf b, vf c)
{
#if defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

static inline vf load(const float *p)
{
    vf v;
    memcpy(&v, p, sizeof(v));
    return v;
}

static inline vf splat(float x)
{
    return (vf){0} + x;
}

static inline float sum(vf v)
{
    float s[VL];
    memcpy(s, &v, sizeof(s));
    for (int width = VL / 2; width; width /= 2)
        for (int i = 0; i < width; i++)
            s[i] += s[i + width];
    return s[0];
}

static inline vf from_bytes(vb b)
{
    return __builtin_convertvector(__builtin_convertvector(b, vi), vf);
}

static inline vb load_bytes(const uint8_t *p)
{
    vb b;
    memcpy(&b, p, sizeof(b));
    return b;
}

static inline vf load_bf16(const uint8_t *p)
{
    vh h;
    memcpy(&h, p, sizeof(h));
    const vi u = __builtin_convertvector(h, vi) << 16;
    vf v;
    memcpy(&v, &u, sizeof(v));
    return v;
}

static inline uint16_t half_at(const uint8_t *p, int64_t i)
{
    return (uint16_t)(p[2 * i] | p[2 * i + 1] << 8);
}

static inline vf load_f16(const uint8_t *p)
{
    vf v;
#if defined(__AVX512F__)
    const __m512 x = _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p));
    memcpy(&v, &x, sizeof(v));
#elif defined(__F16C__) && VL == 8
    const __m256 x = _mm256_cvtph_ps(_mm_loadu_si128((const void *)p));
    memcpy(&v, &x, sizeof(v));
#else
    for (int i = 0; i < VL; i++)
        v[i] = f16_to_f32(half_at(p, i));
#endif
    return v;
}

/* --- plain weights ------------------------------------------------------------------ */

static float dot(const float *a, const float *b, int64_t n)
{
    vf s0 = {0}, s1 = {0};
    int64_t i = 0;
    for (; i + 2 * VL <= n; i += 2 * VL) {
        s0 = madd(load(a + i), load(b + i), s0);
        s1 = madd(load(a + i + VL), load(b + i + VL), s1);
    }
    float tail = 0;
    for (; i < n; i++)
        tail += a[i] * b[i];
    return sum(s0 + s1) + tail;
}

static void axpy(float *y, float a, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] += a * x[i];
}

static float dot_f16(const uint8_t *w, const float *x, int64_t n)
{
    vf s = {0};
    int64_t i = 0;
    for (; i + VL <= n; i += VL)
        s = madd(load_f16(w + 2 * i), load(x + i), s);
    float tail = 0;
    for (; i < n; i++)
        tail += f16_to_f32(half_at(w, i)) * x[i];
    return sum(s) + tail;
}

static float dot_bf16(const uint8_t *w, const float *x, int64_t n)
{
    vf s = {0};
    int64_t i = 0;
    for (; i + VL <= n; i += VL)
        s = madd(load_bf16(w + 2 * i), load(x + i), s);
    float tail = 0;
    for (; i < n; i++)
        tail += bf16_to_f32(half_at(w, i)) * x[i];
    return sum(s) + tail;
}

/* memcpy, not a cast: a checkpoint's tensors start anywhere. */
static float dot_f32(const uint8_t *w, const float *x, int64_t n)
{
    vf s = {0}, v;
    int64_t i = 0;
    for (; i + VL <= n; i += VL) {
        memcpy(&v, w + 4 * i, sizeof(v));
        s = madd(v, load(x + i), s);
    }
    float tail = 0, f;
    for (; i < n; i++) {
        memcpy(&f, w + 4 * i, sizeof(f));
        tail += f * x[i];
    }
    return sum(s) + tail;
}

static float dot_plain(const void *w, enum dtype t, const float *x, int64_t n)
{
    return t == DT_F16    ? dot_f16(w, x, n)
           : t == DT_BF16 ? dot_bf16(w, x, n)
                          : dot_f32(w, x, n);
}

static void to_f32(float *out, const void *w, enum dtype t, int64_t n)
{
    const uint8_t *p = w;
    int64_t i = 0;
    for (; t == DT_F16 && i + VL <= n; i += VL) {
        const vf v = load_f16(p + 2 * i);
        memcpy(out + i, &v, sizeof(v));
    }
    host_to_f32(out + i, p + i * (int64_t)dtype_bytes(t), t, n - i);
}

/* --- packed weights ----------------------------------------------------------------- */

/* Columns [c, end) of one group, c even: sum of (q - z) x. */
static inline vf group_nibbles(float *tail, const uint8_t *codes, const float *even,
                               const float *odd, int64_t bytes, uint8_t z)
{
    const vf zero = splat((float)z);
    vf s0 = {0}, s1 = {0};
    int64_t i = 0;
    for (; i + VL <= bytes; i += VL) {
        const vb b = load_bytes(codes + i);
        s0 = madd(from_bytes(b & 15) - zero, load(even + i), s0);
        s1 = madd(from_bytes(b >> 4) - zero, load(odd + i), s1);
    }
    float t = 0;
    for (; i < bytes; i++)
        t += (float)((codes[i] & 15) - z) * even[i] + (float)((codes[i] >> 4) - z) * odd[i];
    *tail = t;
    return s0 + s1;
}

/* odd has a zero behind an odd number of columns, so that the last nibble adds nothing. */
static float dot_nibbles(const struct rt_row *r, const float *even, const float *odd)
{
    const int64_t half = r->group / 2, bytes = (r->in + 1) / 2;
    vf s = {0};
    float tails = 0;
    for (int64_t g = 0, i = 0; i < bytes; g++, i += half) {
        const int64_t n = bytes - i < half ? bytes - i : half;
        float tail;
        const vf v = group_nibbles(&tail, r->codes + i, even + i, odd + i, n, r->z[g]);
        s = madd(v, splat(r->h[g]), s);
        tails += tail * r->h[g];
    }
    return sum(s) + tails;
}

static const uint8_t *as_bytes(const struct rt_row *r, uint8_t *bytes)
{
    if (r->bits == 8)
        return r->codes;
    bitpack_unpack_row(bytes, r->codes, r->in, r->bits);
    return bytes;
}

static float dot_codes(const struct rt_row *r, const float *x, uint8_t *bytes)
{
    const uint8_t *q = as_bytes(r, bytes);
    vf s = {0};
    float tails = 0;
    for (int64_t g = 0, c = 0; c < r->in; g++) {
        const int64_t end = r->in - c < r->group ? r->in : c + r->group;
        const vf zero = splat(r->z[g]);
        vf v = {0};
        float tail = 0;
        for (; c + VL <= end; c += VL)
            v = madd(from_bytes(load_bytes(q + c)) - zero, load(x + c), v);
        for (; c < end; c++)
            tail += (float)(q[c] - r->z[g]) * x[c];
        s = madd(v, splat(r->h[g]), s);
        tails += tail * r->h[g];
    }
    return sum(s) + tails;
}

static void unpack(float *w, const struct rt_row *r, uint8_t *bytes)
{
    const uint8_t *q = as_bytes(r, bytes);
    for (int64_t g = 0, c = 0; c < r->in; g++) {
        const int64_t end = r->in - c < r->group ? r->in : c + r->group;
        const float h = r->h[g];
        const uint8_t z = r->z[g];
        for (; c < end; c++)
            w[c] = quant_weight_value(q[c], z, h);
    }
}

/* --- 4 rows by n vectors ------------------------------------------------------------ */

/* 4 rows by 2 vectors at a time: 8 sums live in registers. */
static void tile2(float *y, int64_t ldy, const float *w, int64_t ldw, const float *x,
                  int64_t ldx, int64_t in)
{
    vf s[4][2] = {{{0}}};
    int64_t c = 0;
    for (; c + VL <= in; c += VL) {
        const vf x0 = load(x + c), x1 = load(x + ldx + c);
        for (int i = 0; i < 4; i++) {
            const vf v = load(w + i * ldw + c);
            s[i][0] = madd(v, x0, s[i][0]);
            s[i][1] = madd(v, x1, s[i][1]);
        }
    }
    for (int i = 0; i < 4; i++)
        for (int t = 0; t < 2; t++) {
            float tail = 0;
            for (int64_t k = c; k < in; k++)
                tail += w[i * ldw + k] * x[t * ldx + k];
            y[t * ldy + i] = sum(s[i][t]) + tail;
        }
}

static void tile(float *y, int64_t ldy, const float *w, int64_t ldw, const float *x,
                 int64_t ldx, int64_t n, int64_t in)
{
    int64_t t = 0;
    for (; t + 2 <= n; t += 2)
        tile2(y + t * ldy, ldy, w, ldw, x + t * ldx, ldx, in);
    for (; t < n; t++)
        for (int i = 0; i < 4; i++)
            y[t * ldy + i] = dot(w + i * ldw, x + t * ldx, in);
}

/* --- the cache ---------------------------------------------------------------------- */

static void kv_out(float *x, const uint8_t *codes, float h, float m, const float *s,
                   const float *delta, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = quant_kv_out(codes[i], h, m, s[i], delta[i]);
}

/* clang-format off */
#define NAME_OF(isa) rt_kernels_##isa
#define TEXT_OF(isa) #isa
#define TABLE(isa)                                                                         \
    extern const struct rt_kernels NAME_OF(isa);                                           \
    const struct rt_kernels NAME_OF(isa) = {                                               \
        TEXT_OF(isa), dot, axpy, dot_plain, to_f32, dot_nibbles, dot_codes, unpack, tile, kv_out}
/* clang-format on */
#define EXPANDED(isa) TABLE(isa)
EXPANDED(RT_ISA);
