/* SPDX-License-Identifier: MIT
 *
 * A small quantized model and settings, for the tests of refinement. */
#ifndef WKVQ_TESTS_REFINE_FIXTURE_H
#define WKVQ_TESTS_REFINE_FIXTURE_H

#include "calib/refine/refine.h"
#include "tests/calib/calib_fixture.h"

enum { LAYERS = 3, T = 24, SAMPLES = 5, GUARD = 2 };

/* F32, every kind of parameter, and a head that is not quantized. */
struct refine_settings refine_settings(void);

struct model {
    struct fixture f;
    struct memory_io
        calibrated; /* blocks, rounded to nearest by a calibration of no epoch */
    int32_t ids[(SAMPLES + GUARD) * T];
};

/* which: as tiny_arch has it. The weights have 3 bits, the cache kv_bits. */
void model_open(struct model *m, int which, int kv_bits);
void model_close(struct model *m);

#endif
