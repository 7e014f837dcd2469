/* SPDX-License-Identifier: MIT
 *
 * The seal of a document: its last member, "manifest_crc32", is the CRC-32 of all bytes
 * before it. Only the closing brace and a newline follow. */
#ifndef WKVQ_JSON_SEAL_H
#define WKVQ_JSON_SEAL_H

#include "kernels/base/error.h"

#include <stddef.h>
#include <stdint.h>

#define JSON_SEAL_KEY "manifest_crc32"
#define JSON_SEAL_BYTES (sizeof("\"" JSON_SEAL_KEY "\":\"01234567\"\n}\n") - 1)

/* Writes the end of a document whose previous bytes, including the comma, have this CRC-32.
 * out includes a NUL. */
void json_seal(char out[JSON_SEAL_BYTES + 1], uint32_t crc);
/* Returns ERR_FORMAT, with path, unless the n bytes of text end with their seal. */
enum err json_check_seal(const char *text, size_t n, const char *path);

#endif
