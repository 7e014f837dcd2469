/* SPDX-License-Identifier: MIT */
#include "tests/calib/refine_fixture.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

struct refine_settings refine_settings(void)
{
    return (struct refine_settings){.samples = SAMPLES,
                                    .guard = GUARD,
                                    .seqlen = T,
                                    .epochs = 3,
                                    .batch = 2,
                                    .lr = {3e-3f, 1e-3f, 2e-3f, 2e-3f},
                                    .kl = 1,
                                    .scale_bits = 11,
                                    .head = {.bits = 16},
                                    .act = DT_F32,
                                    .seed = 5};
}

void model_open(struct model *m, int which, int kv_bits)
{
    struct calib_settings s = tiny_settings();
    struct rng r;
    fixture_open(&m->f, tiny_arch(which, LAYERS), 31);
    s.epochs = 0;
    s.weights.bits = 3;
    s.kv.bits = kv_bits;
    memory_io_open(&m->calibrated);
    must(run_on("cpu", &m->calibrated, &m->f, &s));
    assert_int_equal(m->calibrated.n_blocks, LAYERS);
    rng_seed(&r, 8);
    for (size_t i = 0; i < ARRAY_LEN(m->ids); i++)
        m->ids[i] = (int32_t)rng_below(&r, (uint64_t)m->f.arch.vocab);
}

void model_close(struct model *m)
{
    memory_io_close(&m->calibrated);
    fixture_close(&m->f);
}
