/* SPDX-License-Identifier: MIT */
#include "calib/model/shapes.h"

#include <string.h>

/* clang-format off */
static const struct arch shapes[] = {
    {.model_type = "llama", .n_layers = 30, .d_model = 576, .d_ff = 1536, .n_heads = 9,
     .n_kv = 3, .head_dim = 64, .vocab = 49152, .max_positions = 1 << 20,
     .norm_eps = 1e-5f, .rope_theta = 1e5, .bos = -1, .dtype = DT_BF16, .tied = true},
    {.model_type = "llama", .n_layers = 22, .d_model = 2048, .d_ff = 5632, .n_heads = 32,
     .n_kv = 4, .head_dim = 64, .vocab = 32000, .max_positions = 1 << 20,
     .norm_eps = 1e-5f, .rope_theta = 1e4, .bos = -1, .dtype = DT_BF16},
    {.model_type = "llama", .n_layers = 32, .d_model = 4096, .d_ff = 11008, .n_heads = 32,
     .n_kv = 32, .head_dim = 128, .vocab = 32000, .max_positions = 1 << 20,
     .norm_eps = 1e-5f, .rope_theta = 1e4, .bos = -1, .dtype = DT_BF16},
    {.model_type = "llama", .n_layers = 40, .d_model = 5120, .d_ff = 13824, .n_heads = 40,
     .n_kv = 40, .head_dim = 128, .vocab = 32000, .max_positions = 1 << 20,
     .norm_eps = 1e-5f, .rope_theta = 1e4, .bos = -1, .dtype = DT_BF16},
};
/* clang-format on */
static const char *const shape_name[] = {"smollm2-135m", "tinyllama-1.1b", "llama-2-7b",
                                         "llama-2-13b"};

static const int64_t shape_positions[] = {8192, 2048, 4096, 4096};
_Static_assert(ARRAY_LEN(shape_name) == ARRAY_LEN(shapes) &&
                   ARRAY_LEN(shape_positions) == ARRAY_LEN(shapes),
               "a shape has a name and positions");

static int find_shape(const char *name)
{
    for (int i = 0; i < (int)ARRAY_LEN(shapes); i++)
        if (!strcmp(name, shape_name[i]))
            return i;
    return -1;
}

enum err arch_of_shape(struct arch *out, const char *name)
{
    const int i = find_shape(name);
    FAIL_IF(i < 0, ERR_USAGE,
            "--shape %s: want smollm2-135m, tinyllama-1.1b, llama-2-7b or llama-2-13b",
            name);
    *out = shapes[i];
    return OK;
}

int64_t arch_shape_positions(const char *name)
{
    const int i = find_shape(name);
    return i < 0 ? 0 : shape_positions[i];
}
