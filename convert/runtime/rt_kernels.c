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
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#else
    float s[VL];
    memcpy(s, &v, sizeof(s));
    for (int width = VL / 2; width; width /= 2)
        for (int i = 0; i < width; i++)
            s[i] += s[i + width];
    return s[0];
#endif
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

/* Eight nibbles lie in the 32 bits of a lane: shifting all lanes by 4 k brings the codes of
 * columns 8 lane + k down. A block is VL lanes, 8 VL columns; x is parted alike, k by k. */
#define BLOCK (8 * VL)

static void part(float *parted, const float *x, int64_t n)
{
    for (int64_t c = 0; c < rt_parted(n); c++) {
        const int64_t in = c % BLOCK, column = c - in + in % VL * 8 + in / VL;
        parted[c] = column < n ? x[column] : 0;
    }
}

/* sum over the eight columns of each lane of (q - z) x. */
static inline vf block_sum(vi codes, vf zero, const float *x)
{
    vf even = {0}, odd = {0};
    for (int k = 0; k < 8; k += 2) {
        const vf q0 = __builtin_convertvector((codes >> 4 * k) & 15, vf) - zero;
        const vf q1 = __builtin_convertvector((codes >> (4 * k + 4)) & 15, vf) - zero;
        even = madd(q0, load(x + k * VL), even);
        odd = madd(q1, load(x + k * VL + VL), odd);
    }
    return even + odd;
}

/* The last block of a row may end early: its missing columns meet zeros of x. */
static inline vi load_codes(const uint8_t *p, int64_t bytes)
{
    vi v = {0};
    if (bytes >= (int64_t)sizeof(v))
        memcpy(&v, p, sizeof(v));
    else
        memcpy(&v, p, (size_t)bytes);
    return v;
}

#if defined(__AVX512F__)
/* s[k] += table[codes of column 8 lane + k] x, the table's sixteen values being w^. */
static inline void add_block(__m512 s[4], __m512i codes, __m512 table, const float *x)
{
    for (int k = 0; k < 8; k++) {
        const __m512 w =
            _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 4 * (unsigned)k), table);
        s[k % 4] = _mm512_fmadd_ps(w, _mm512_loadu_ps(x + k * VL), s[k % 4]);
    }
}

/* Groups of whole blocks: the sixteen values of a group are a table in a register, which a
 * lane's lowest four bits index. */
static float dot_tables(const struct rt_row *r, const float *x)
{
    const __m512 code = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const int64_t bytes = (r->in + 1) / 2, group = r->group / 2;
    const uint8_t *p = r->codes, *const end = p + bytes, *const whole = p + bytes / 64 * 64;
    __m512 s[4] = {{0}}, table = {0};
    for (int64_t g = 0; p < end; g++) {
        const uint8_t *const stop = whole - p < group ? whole : p + group;
        table = _mm512_mul_ps(_mm512_sub_ps(code, _mm512_set1_ps((float)r->z[g])),
                              _mm512_set1_ps(r->h[g]));
        for (; p < stop; p += 64, x += BLOCK)
            add_block(s, _mm512_loadu_si512(p), table, x);
        if (p == whole && p < end) { /* the row's last block ends early */
            const __mmask64 there = ((__mmask64)1 << (end - p)) - 1;
            if (whole - r->codes == (g + 1) * group)
                continue; /* it begins the next group */
            add_block(s, _mm512_maskz_loadu_epi8(there, p), table, x);
            break;
        }
    }
    return _mm512_reduce_add_ps(
        _mm512_add_ps(_mm512_add_ps(s[0], s[1]), _mm512_add_ps(s[2], s[3])));
}
#endif

/* h and z of every lane. */
static void spread(float *h, float *z, const struct rt_row *r)
{
    const int64_t lanes = rt_parted(r->in) / 8, wide = r->group / 8;
    for (int64_t g = 0, i = 0; i < lanes; g++) {
        const bool there = g * r->group < r->in;
        const float hg = there ? r->h[g] : 0, zg = there ? (float)r->z[g] : 0;
        for (const int64_t end = lanes - i < wide ? lanes : i + wide; i < end; i++) {
            h[i] = hg;
            z[i] = zg;
        }
    }
}

static float dot_nibbles(const struct rt_row *r, const float *parted, float *lanes)
{
    struct rt_row row = *r;
    if (row.group >= row.in) /* one group */
        row.group = rt_parted(row.in);
#if defined(__AVX512F__)
    if (row.group % BLOCK == 0)
        return dot_tables(&row, parted);
#endif
    float *h = lanes, *z = lanes + rt_parted(row.in) / 8;
    const int64_t bytes = (row.in + 1) / 2;
    vf s = {0};
    spread(h, z, &row);
    for (int64_t b = 0; b * BLOCK < row.in; b++) {
        const vi v = load_codes(row.codes + b * 4 * VL, bytes - b * 4 * VL);
        s = madd(block_sum(v, load(z + b * VL), parted + b * BLOCK), load(h + b * VL), s);
    }
    return sum(s);
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
        TEXT_OF(isa), dot, axpy, dot_plain, to_f32, part, dot_nibbles, dot_codes, unpack, tile, kv_out}
/* clang-format on */
#define EXPANDED(isa) TABLE(isa)
EXPANDED(RT_ISA);
