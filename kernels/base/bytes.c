/* SPDX-License-Identifier: MIT
 *
 * Reads from a bounded cursor, and CRC-32. */
#include "kernels/base/bytes.h"

#include <inttypes.h>
#include <zlib.h>

enum err bytes_view(struct bytes *b, uint64_t n, const uint8_t **out)
{
    FAIL_IF(n > b->size - b->pos, ERR_FORMAT,
            "need %" PRIu64 " bytes at offset %zu, input has %zu", n, b->pos, b->size);
    *out = b->data + b->pos;
    b->pos += (size_t)n;
    return OK;
}

enum err bytes_u8(struct bytes *b, uint8_t *out)
{
    const uint8_t *p;
    TRY(bytes_view(b, 1, &p));
    *out = *p;
    return OK;
}

enum err bytes_u64(struct bytes *b, uint64_t *out)
{
    const uint8_t *p;
    TRY(bytes_view(b, 8, &p));
    uint64_t v = 0;
    for (int i = 7; i >= 0; i--)
        v = v << 8 | p[i];
    *out = v;
    return OK;
}

enum err bytes_varint(struct bytes *b, uint64_t *out)
{
    const size_t start = b->pos;
    uint64_t v = 0;
    for (int shift = 0; shift < 64; shift += 7) {
        uint8_t c;
        enum err e = bytes_u8(b, &c);
        if (e) {
            b->pos = start;
            return e;
        }
        v |= (uint64_t)(c & 0x7f) << shift;
        if (!(c & 0x80)) {
            *out = v;
            return OK;
        }
    }
    b->pos = start;
    FAIL(ERR_FORMAT, "integer at offset %zu is longer than 10 bytes", start);
}

/* With a NULL buffer, zlib starts anew. */
uint32_t bytes_crc32(uint32_t crc, const void *data, size_t n)
{
    return n ? (uint32_t)crc32_z(crc, data, n) : crc;
}
