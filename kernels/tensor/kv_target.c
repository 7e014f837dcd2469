/* SPDX-License-Identifier: MIT
 *
 * What the caches of other engines are (kernels/tensor/qtensor.h). */
#include "kernels/tensor/qtensor.h"

#include "kernels/tensor/hadamard.h"

#include <inttypes.h>

const char *const kv_target_name[N_KV_TARGETS] = {[TARGET_WKVQ] = "wkvq",
                                                  [TARGET_Q4_0] = "llama.cpp-q4_0",
                                                  [TARGET_Q4_1] = "llama.cpp-q4_1",
                                                  [TARGET_FP8] = "fp8"};

/* A block of llama.cpp's is 32 channels of a token. FP8 has no groups; a setting of at least the
 * head's width says so. Every query reads its own key and value from the cache, too. */
struct kv_spec kv_target_spec(enum kv_target target)
{
    const bool fp8 = target == TARGET_FP8;
    return (struct kv_spec){.method = KV_TOKEN,
                            .bits = fp8 ? 8 : 4,
                            .group_size = fp8 ? HADAMARD_MAX : 32,
                            .key_stage = KEY_POST_ROPE,
                            .past_only = false,
                            .window = 1,
                            .target = target};
}

bool kv_target_folds(enum kv_target target)
{
    return target == TARGET_Q4_0 || target == TARGET_Q4_1;
}

bool kv_target_has_scales(enum kv_target target)
{
    return target == TARGET_FP8;
}

bool kv_needs_ranges(const struct kv_spec *kv)
{
    return kv_quantizes(kv) &&
           (kv->method == KV_CHANNEL_TOKEN || kv_target_has_scales(kv->target));
}

bool kv_target_fits(const struct kv_spec *kv, int64_t head_dim)
{
    if (kv_target_folds(kv->target))
        return head_dim >= KV_TARGET_V_ROTATION && hadamard_fits(head_dim);
    return !kv->target || head_dim <= HADAMARD_MAX;
}

enum err kv_target_check(const struct kv_spec *kv, int64_t head_dim)
{
    if (kv_target_fits(kv, head_dim))
        return OK;
    FAIL_IF(
        kv_target_folds(kv->target), ERR_SUPPORT,
        "kv.target: llama.cpp rotates heads of a multiple of 64 channels, and only powers of "
        "two from 64 to %d are simulated; this model's have %" PRId64
        "; set kv.target to wkvq",
        HADAMARD_MAX, head_dim);
    FAIL(ERR_SUPPORT,
         "kv.target: heads of more than %d channels are not simulated; this model's have "
         "%" PRId64 "; set kv.target to wkvq",
         HADAMARD_MAX, head_dim);
}
