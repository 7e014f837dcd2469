/* SPDX-License-Identifier: MIT */
#include "convert/format/tensor_names.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LAYER_PREFIX "model.layers."

void layer_tensor_name(char *out, size_t size, int64_t layer, const char *module,
                       const char *tail)
{
    snprintf(out, size, LAYER_PREFIX "%" PRId64 ".%s%s", layer, module, tail);
}

int64_t layer_of_tensor(const char *name, const char **rest)
{
    const size_t n = strlen(LAYER_PREFIX);
    char *end;
    if (strncmp(name, LAYER_PREFIX, n) || name[n] < '0' || name[n] > '9')
        return -1;
    const long long layer = strtoll(name + n, &end, 10);
    *rest = end + 1;
    return *end == '.' ? (int64_t)layer : -1;
}
