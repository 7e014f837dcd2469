/* SPDX-License-Identifier: MIT */
#include "kernels/tensor/host_finite.h"

#include <inttypes.h>
#include <string.h>

/* True if the exponent of one of n 16-bit floats is all ones, which `mask` selects. */
static bool any_nonfinite16(const uint8_t *p, uint16_t mask, int64_t n)
{
    bool any = false;
    for (int64_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, p + 2 * i, sizeof(h));
        any |= (h & mask) == mask;
    }
    return any;
}

static bool any_nonfinite32(const uint8_t *p, uint32_t mask, int64_t n)
{
    bool any = false;
    for (int64_t i = 0; i < n; i++) {
        uint32_t u;
        memcpy(&u, p + 4 * i, sizeof(u));
        any |= (u & mask) == mask;
    }
    return any;
}

static bool any_nonfinite(const uint8_t *p, enum dtype t, int64_t n)
{
    return t == DT_F32 ? any_nonfinite32(p, 0x7f800000u, n)
                       : any_nonfinite16(p, t == DT_F16 ? 0x7c00u : 0x7f80u, n);
}

int64_t host_find_nonfinite(const void *src, enum dtype t, int64_t n)
{
    enum { PIECE = 4096 }; /* found in loops without branches, which compilers vectorize */
    const size_t unit = dtype_bytes(t);
    const uint8_t *p = src;
    if (t != DT_F32 && t != DT_F16 && t != DT_BF16)
        return -1;
    for (int64_t i = 0; i < n; i += PIECE) {
        const int64_t end = n - i < PIECE ? n : i + PIECE;
        if (!any_nonfinite(p + (size_t)i * unit, t, end - i))
            continue;
        while (!any_nonfinite(p + (size_t)i * unit, t, 1))
            i++;
        return i;
    }
    return -1;
}

enum err host_check_finite(const char *name, const void *src, enum dtype t, int64_t n,
                           int64_t cols)
{
    const int64_t bad = host_find_nonfinite(src, t, n);
    float x;
    if (bad < 0)
        return OK;
    host_to_f32(&x, (const uint8_t *)src + (size_t)bad * dtype_bytes(t), t, 1);
    FAIL_IF(cols > 1, ERR_FORMAT,
            "tensor %s: row %" PRId64 ", column %" PRId64 " is %g, want a finite number",
            name, bad / cols, bad % cols, (double)x);
    FAIL(ERR_FORMAT, "tensor %s: element %" PRId64 " is %g, want a finite number", name,
         bad, (double)x);
}
