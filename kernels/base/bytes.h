/* SPDX-License-Identifier: MIT
 *
 * Bounded little-endian cursor over untrusted bytes. pos <= size always; a failed read
 * leaves pos unchanged and returns ERR_FORMAT with the offset. */
#ifndef WKVQ_BYTES_H
#define WKVQ_BYTES_H

#include "kernels/base/error.h"

#include <stdint.h>

struct bytes {
    const uint8_t *data; /* borrowed */
    size_t size, pos;
};

enum err bytes_view(struct bytes *b, uint64_t n, const uint8_t **out);
enum err bytes_u8(struct bytes *b, uint8_t *out);
enum err bytes_u32(struct bytes *b, uint32_t *out);
enum err bytes_u64(struct bytes *b, uint64_t *out);
/* Protobuf-style base-128 integer of at most 10 bytes. */
enum err bytes_varint(struct bytes *b, uint64_t *out);

/* CRC-32 (zlib's polynomial) of n bytes, continued from crc (0 to start). */
uint32_t bytes_crc32(uint32_t crc, const void *data, size_t n);

#endif
