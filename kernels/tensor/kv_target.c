/* SPDX-License-Identifier: MIT
 *
 * What the caches of other engines are (kernels/tensor/qtensor.h). */
#include "kernels/tensor/qtensor.h"

#include "kernels/tensor/hadamard.h"

#include <inttypes.h>

const char *const kv_target_name[N_KV_TARGETS] = {[TARGET_WKVQ] = "wkvq",
                                                  [TARGET_Q4_0] = "llama.cpp-q4_0",
                                                  [TARGET_Q4_1] = "llama.cpp-q4_1",
                                                  [TARGET_FP8] = "fp8",
                                                  [TARGET_QUANTO4] = "transformers-quanto4",
                                                  [TARGET_VLLM_INT4] = "vllm-int4"};

/* Channels of a group: all of a head's where a setting is at least its width. */
static int64_t group_of(enum kv_target target)
{
    if (kv_target_folds(target))
        return 32;
    return target == TARGET_QUANTO4 ? 64 : HADAMARD_MAX;
}

/* Every query reads its own key and value from the cache, too, except where a residual keeps them
 * in full precision. */
struct kv_spec kv_target_spec(enum kv_target target)
{
    return (struct kv_spec){.method = KV_TOKEN,
                            .bits = target == TARGET_FP8 ? 8 : 4,
                            .group_size = group_of(target),
                            .key_stage = KEY_POST_ROPE,
                            .past_only = kv_target_residual(target) > 1,
                            .window = 1,
                            .target = target};
}

/* 128 is the residual_length that QuantizedCache has unless told otherwise. */
int64_t kv_target_residual(enum kv_target target)
{
    return target == TARGET_QUANTO4 ? 128 : 1;
}

enum err kv_target_check_length(const char *name, enum kv_target target, int64_t T)
{
    const int64_t residual = kv_target_residual(target);
    FAIL_IF(residual > 1 && T <= residual, ERR_USAGE,
            "%s is %" PRId64 ", but the cache of %s keeps %" PRId64
            " tokens in full precision before it quantizes them; give more than that",
            name, T, kv_target_name[target], residual);
    return OK;
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
    if (kv->target == TARGET_QUANTO4 && head_dim % 64)
        return false;
    if (kv->target == TARGET_VLLM_INT4 && (head_dim < 32 || head_dim % 2))
        return false;
    return !kv->target || head_dim <= HADAMARD_MAX;
}

enum err kv_target_check(const struct kv_spec *kv, int64_t head_dim)
{
    static const char *const why[N_KV_TARGETS] = {
        [TARGET_Q4_0] =
            "llama.cpp rotates heads of a multiple of 64 channels, and only powers "
            "of two from 64 to 512 are simulated",
        [TARGET_Q4_1] =
            "llama.cpp rotates heads of a multiple of 64 channels, and only powers "
            "of two from 64 to 512 are simulated",
        [TARGET_FP8] = "heads of more than 512 channels are not simulated",
        [TARGET_QUANTO4] =
            "quanto's groups of 64 channels would span tokens unless heads are a "
            "multiple of 64, and more than 512 channels are not simulated",
        [TARGET_VLLM_INT4] =
            "vLLM's int4_per_token_head needs heads of 32 or more channels, and "
            "more than 512 are not simulated"};
    _Static_assert(HADAMARD_MAX == 512, "the texts above");
    FAIL_IF(!kv_target_fits(kv, head_dim), ERR_SUPPORT,
            "kv.target: %s; this model's have %" PRId64 "; set kv.target to wkvq",
            why[kv->target], head_dim);
    return OK;
}
