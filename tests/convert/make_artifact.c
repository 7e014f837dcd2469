/* SPDX-License-Identifier: MIT
 *
 * make_artifact MODEL_DIR ARTIFACT TYPE BITS GROUP SHARD [KV_MIX [MIX [HEAD_BITS]]]: a tiny
 * model and its artifact, for readers in other languages; prints the bytes of a token's
 * cache. */
#include "convert/artifact/reader.h"
#include "convert/artifact/writer.h"
#include "tests/convert/tiny_model.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static enum err print_cache(const char *dir)
{
    struct artifact *a = NULL;
    TRY(artifact_open(&a, dir, 0));
    printf("%" PRIu64 "\n", artifact_kv_bytes(a, 1, 1));
    artifact_close(&a);
    return OK;
}

static enum err make(char **arg, const struct mix *weights, const struct mix *cache,
                     int head_bits)
{
    struct hf_model *m = NULL;
    struct tiny_model t = tiny_default;
    t.type = arg[3];
    t.tied = !strcmp(t.type, "qwen3");
    struct artifact_settings s = {
        .weights = {WEIGHT_RTN, atoi(arg[4]), atoll(arg[5])},
        .kv = {KV_TOKEN, 4, 4, KEY_POST_ROPE, true, 1, 0, true, ROTATE_NONE, TARGET_WKVQ,
               cache},
        .shard_bytes = strtoull(arg[6], NULL, 10),
        .force = true,
    };
    s.weights.mixed = weights;
    s.weights.head_bits = head_bits;
    s.weights.head_group = 5;
    TRY(tiny_model_write(arg[1], &t));
    TRY(hf_open(&m, arg[1]));
    const enum err err = artifact_write(arg[2], m, arg[1], NULL, &s, NULL, NULL);
    hf_close(&m);
    return err ? err : print_cache(arg[2]);
}

static enum err make_mixed(int n, char **arg)
{
    struct mix *weights = NULL, *cache = NULL;
    enum err err = mix_parse(&cache, MIX_KV, n > 7 ? arg[7] : "", ERR_USAGE, "KV_MIX");
    if (!err)
        err = mix_parse(&weights, MIX_WEIGHTS, n > 8 ? arg[8] : "", ERR_USAGE, "MIX");
    if (!err)
        err = make(arg, weights, cache, n > 9 ? atoi(arg[9]) : 16);
    mix_free(weights);
    mix_free(cache);
    return err;
}

int main(int argc, char **argv)
{
    const bool usage = argc >= 7 && argc <= 10;
    if (!usage || make_mixed(argc, argv)) {
        fprintf(stderr, "make_artifact: %s\n", usage ? err_text() : "wrong usage");
        return 1;
    }
    return 0;
}
