/* SPDX-License-Identifier: MIT
 *
 * make_artifact MODEL_DIR ARTIFACT TYPE BITS GROUP SHARD: a tiny model and its artifact,
 * for readers in other languages. */
#include "convert/artifact/writer.h"
#include "tests/convert/tiny_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static enum err make(char **arg)
{
    struct hf_model *m = NULL;
    struct tiny_model t = tiny_default;
    t.type = arg[3];
    t.tied = !strcmp(t.type, "qwen3");
    const struct artifact_settings s = {
        .weights = {WEIGHT_RTN, atoi(arg[4]), atoll(arg[5])},
        .kv = {KV_TOKEN, 4, 4, KEY_POST_ROPE, true, 1, 0, true, ROTATE_NONE},
        .shard_bytes = strtoull(arg[6], NULL, 10),
        .force = true,
    };
    TRY(tiny_model_write(arg[1], &t));
    TRY(hf_open(&m, arg[1]));
    const enum err err = artifact_write(arg[2], m, arg[1], NULL, &s, NULL, NULL);
    hf_close(&m);
    return err;
}

int main(int argc, char **argv)
{
    if (argc != 7 || make(argv)) {
        fprintf(stderr, "make_artifact: %s\n", argc == 7 ? err_text() : "wrong usage");
        return 1;
    }
    return 0;
}
