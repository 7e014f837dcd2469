/* SPDX-License-Identifier: MIT */
#include "kernels/tensor/tensor.h"

#include "kernels/base/half.h"

static const struct {
    const char *name;
    size_t bytes;
} types[] = {
    [DT_F32] = {"F32", 4}, [DT_F16] = {"F16", 2},   [DT_BF16] = {"BF16", 2},
    [DT_I32] = {"I32", 4}, [DT_I64] = {"I64", 8},   [DT_U8] = {"U8", 1},
    [DT_I8] = {"I8", 1},   [DT_BOOL] = {"BOOL", 1}, [DT_OTHER] = {"?", 0},
};

size_t dtype_bytes(enum dtype t)
{
    return types[t].bytes;
}

const char *dtype_name(enum dtype t)
{
    return types[t].name;
}

struct tensor tensor_1d(void *data, enum dtype t, int64_t n)
{
    return (struct tensor){.data = data, .dtype = t, .n_dims = 1, .dim = {n}, .ld = n};
}

struct tensor tensor_2d(void *data, enum dtype t, int64_t rows, int64_t cols)
{
    return (struct tensor){
        .data = data, .dtype = t, .n_dims = 2, .dim = {rows, cols}, .ld = cols};
}

struct tensor tensor_3d(void *data, enum dtype t, int64_t n0, int64_t n1, int64_t n2)
{
    return (struct tensor){
        .data = data, .dtype = t, .n_dims = 3, .dim = {n0, n1, n2}, .ld = n1 * n2};
}

static void *advance(const struct tensor *x, int64_t elements)
{
    return (char *)x->data + elements * (int64_t)dtype_bytes(x->dtype);
}

struct tensor tensor_cols(struct tensor x, int64_t first, int64_t n)
{
    x.data = advance(&x, first);
    x.dim[1] = n;
    return x;
}

struct tensor tensor_rows(struct tensor x, int64_t first, int64_t n)
{
    x.data = advance(&x, first * (x.n_dims == 1 ? 1 : x.ld));
    x.dim[0] = n;
    return x;
}

struct tensor tensor_heads(struct tensor x, int64_t heads)
{
    x.n_dims = 3;
    x.dim[2] = x.dim[1] / heads;
    x.dim[1] = heads;
    return x;
}

int64_t tensor_count(const struct tensor *x)
{
    int64_t n = 1;
    for (int i = 0; i < x->n_dims; i++)
        n *= x->dim[i];
    return n;
}

int64_t tensor_n_rows(const struct tensor *x)
{
    return x->n_dims == 1 ? 1 : x->dim[0];
}

int64_t tensor_width(const struct tensor *x)
{
    int64_t width = x->dim[x->n_dims - 1];
    for (int i = 1; i < x->n_dims - 1; i++)
        width *= x->dim[i];
    return width;
}

/* f16_to_f32 by masks, so that compilers vectorize the loop: gcc makes branches of conditions that
 * guard a product. All exponent bits set make a special value of a normal one. */
static float f16_wide(uint16_t h)
{
    const uint32_t exp = h & 0x7c00u, sign = (uint32_t)(h & 0x8000u) << 16;
    const uint32_t small = f32_bits((float)(h & 0x3ff) * 0x1p-24f);
    const uint32_t normal = ((uint32_t)(h & 0x7fff) << 13) + (112u << 23);
    const uint32_t is_small = 0u - (exp == 0), is_special = 0u - (exp == 0x7c00u);
    const uint32_t u = (normal & ~is_small) | (small & is_small);
    return f32_from_bits(u | (is_special & 0x7f800000u) | sign);
}

void host_to_f32(float *dst, const void *src, enum dtype t, int64_t n)
{
    if (t == DT_F32) {
        memcpy(dst, src, (size_t)n * sizeof(*dst));
        return;
    }
    const uint8_t *p = src;
    uint16_t h;
    if (t == DT_BF16)
        for (int64_t i = 0; i < n; i++) {
            memcpy(&h, p + 2 * i, sizeof(h));
            dst[i] = bf16_to_f32(h);
        }
    else
        for (int64_t i = 0; i < n; i++) {
            memcpy(&h, p + 2 * i, sizeof(h));
            dst[i] = f16_wide(h);
        }
}

void host_to_bf16(uint16_t *dst, const void *src, enum dtype t, int64_t n)
{
    if (t == DT_BF16) {
        memcpy(dst, src, (size_t)n * sizeof(*dst));
        return;
    }
    const uint8_t *p = src;
    float f;
    uint16_t h;
    if (t == DT_F32)
        for (int64_t i = 0; i < n; i++) {
            memcpy(&f, p + 4 * i, sizeof(f));
            dst[i] = bf16_from_f32(f);
        }
    else
        for (int64_t i = 0; i < n; i++) {
            memcpy(&h, p + 2 * i, sizeof(h));
            dst[i] = bf16_from_f32(f16_wide(h));
        }
}
