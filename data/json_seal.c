/* SPDX-License-Identifier: MIT */
#include "data/json_seal.h"

#include "kernels/base/bytes.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

void json_seal(char out[JSON_SEAL_BYTES + 1], uint32_t crc)
{
    snprintf(out, JSON_SEAL_BYTES + 1, "\"" JSON_SEAL_KEY "\":\"%08" PRIx32 "\"\n}\n", crc);
}

enum err json_check_seal(const char *text, size_t n, const char *path)
{
    const size_t digits = sizeof("\"" JSON_SEAL_KEY "\":\"") - 1,
                 body = n - JSON_SEAL_BYTES;
    char want[JSON_SEAL_BYTES + 1];
    bool sealed = n >= JSON_SEAL_BYTES;
    if (sealed) {
        const char *end = text + body;
        json_seal(want, bytes_crc32(0, text, body));
        sealed = !memcmp(end, want, digits) &&
                 strspn(end + digits, "0123456789abcdef") == 8 &&
                 !memcmp(end + digits + 8, want + digits + 8, JSON_SEAL_BYTES - digits - 8);
    }
    FAIL_IF(!sealed, ERR_FORMAT, "%s: does not end with its CRC-32 (is the file complete?)",
            path);
    FAIL_IF(memcmp(text + body, want, JSON_SEAL_BYTES), ERR_FORMAT,
            "%s: damaged: CRC-32 is %.8s, the file says %.8s", path, want + digits,
            text + body + digits);
    return OK;
}
