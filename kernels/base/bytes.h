/* SPDX-License-Identifier: MIT
 *
 * A bounded little-endian cursor over untrusted bytes. pos <= size always holds. A read
 * past the end returns ERR_FORMAT with the offset in its message, and leaves pos and *out
 * unchanged. Not thread-safe: one cursor per thread. */
#ifndef WKVQ_BYTES_H
#define WKVQ_BYTES_H

#include "kernels/base/error.h"

#include <stdint.h>

struct bytes {
    const uint8_t *data; /* borrowed */
    size_t size, pos;
};

/* *out points to the next n bytes, inside data. */
enum err bytes_view(struct bytes *b, uint64_t n, const uint8_t **out);
enum err bytes_u8(struct bytes *b, uint8_t *out);
enum err bytes_u64(struct bytes *b, uint64_t *out);
/* A base-128 integer as Protobuf stores it, of at most 10 bytes. */
enum err bytes_varint(struct bytes *b, uint64_t *out);

/* Returns the CRC-32 (zlib's polynomial) of n more bytes after crc; start with 0. data may be NULL
 * if n is 0. */
uint32_t bytes_crc32(uint32_t crc, const void *data, size_t n);

#endif
