/* SPDX-License-Identifier: MIT
 *
 * A small model with quantized weights and cache, and windows of tokens. */
#ifndef WKVQ_TESTS_QUANTIZED_FIXTURE_H
#define WKVQ_TESTS_QUANTIZED_FIXTURE_H

#include "calib/model/model.h"
#include "tests/model/model_fixture.h"

enum { LAYERS = 2, H = 4, K = 2, HD = 6, D = 20, F = 28, V = 31, T = 9, WINDOWS = 3 };
enum { C = K * HD, W_BITS = 4, W_GROUP = 8, KV_BITS = 4, KV_GROUP = 4 };

struct quantized {
    struct fixture f;
    struct block_quant q[LAYERS];
    struct model_quant quant;
    int32_t ids[WINDOWS * T];
};

/* Weights are rounded to nearest. */
void quantized_open(struct quantized *m);
void quantized_close(struct quantized *m);

#endif
