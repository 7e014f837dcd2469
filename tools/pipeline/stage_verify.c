/* SPDX-License-Identifier: MIT */
#include "kernels/base/log.h"
#include "tools/pipeline/stages.h"

#define CTX 512 /* tokens whose perplexity is also computed by real decode */

enum err stage_verify(struct verify_report *out, struct job *j, struct state *s,
                      const char *artifact_dir, double *const layer_cosine[2])
{
    const int64_t n = (int64_t)j->ids.n;
    const int64_t ctx = n < CTX ? n : CTX;
    const struct verify_settings settings = {
        .against = j->model_dir,
        .state = s ? state_source(s) : NULL,
        .ids = j->ids.id,
        .n_ids = n,
        .logit_tokens = n < 256 ? n : 256,
        .windows = 1,
        .ctx = ctx,
        .act = DT_F32,
        .threads = (int)j->recipe.threads,
        .layer_cosine = {layer_cosine ? layer_cosine[0] : NULL,
                         layer_cosine ? layer_cosine[1] : NULL},
    };
    log_info("verifying %s", artifact_dir);
    return verify_run(out, artifact_dir, &settings);
}
