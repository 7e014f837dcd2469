/* SPDX-License-Identifier: MIT
 *
 * The tiny models under tests/golden/models: token ids and the logits that Hugging Face
 * transformers computes for them (tests/golden/gen_models.py). */
#ifndef WKVQ_TESTS_GOLDEN_MODEL_H
#define WKVQ_TESTS_GOLDEN_MODEL_H

#include "convert/checkpoint/hf.h"

extern const char *const golden_name[];
extern const int golden_count;

struct golden {
    char dir[512];
    struct hf_model *model;
    struct st_file *file;
    int64_t T, V;
    int32_t *ids;  /* [T], owned */
    float *logits; /* [T][V], owned */
};

/* The environment's GOLDEN_MODELS is the folder. */
enum err golden_open(struct golden *g, const char *name);
void golden_close(struct golden *g);
/* Largest absolute difference relative to the range of want; NaN if any value is. */
double golden_error(const float *have, const float *want, int64_t n);

#endif
