/* SPDX-License-Identifier: MIT
 *
 * Artifacts of the golden models with weights rounded to nearest and a cache of random
 * smoothing and shift, and the simulation that goes with them. */
#ifndef WKVQ_TESTS_GOLDEN_ARTIFACT_H
#define WKVQ_TESTS_GOLDEN_ARTIFACT_H

#include "calib/model/model.h"
#include "convert/artifact/reader.h"
#include "convert/artifact/writer.h"
#include "tests/golden_model.h"

/* A quant_source like that of calibration; use its address for `quant`. */
struct fake_state {
    const struct golden *g;
    struct weight_spec weights;
    struct kv_spec kv;
    struct block_quant current;
    struct quant_source source;
    struct model_quant quant; /* the same for the simulation */
};

void fake_state_open(struct fake_state *s, const struct golden *g,
                     struct weight_spec weights, struct kv_spec kv);
void fake_state_close(struct fake_state *s);
/* Writes the artifact of g under s to dir, which may contain an artifact. */
enum err golden_artifact(const char *dir, const struct golden *g, struct fake_state *s);

#endif
