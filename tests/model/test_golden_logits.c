/* SPDX-License-Identifier: MIT
 *
 * The whole model in full precision against Hugging Face transformers, every architecture
 * variant, on every device. */
#include "calib/model/model.h"
#include "kernels/base/mem.h"
#include "tests/golden_model.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define BOUND 1e-4 /* of the logits' range */

/* -log p(id) under logits [V]. */
static double loss_of(const float *logits, int64_t V, int32_t id)
{
    double max = (double)logits[0], sum = 0;
    for (int64_t v = 1; v < V; v++)
        max = fmax(max, (double)logits[v]);
    for (int64_t v = 0; v < V; v++)
        sum += exp((double)logits[v] - max);
    return max + log(sum) - (double)logits[id];
}

/* Returns the distance between the smallest and the largest of n values. */
static double range_of(const float *x, int64_t n)
{
    double least = (double)x[0], most = (double)x[0];
    for (int64_t i = 1; i < n; i++) {
        least = fmin(least, (double)x[i]);
        most = fmax(most, (double)x[i]);
    }
    return most - least;
}

/* The text twice in one window, the second time with its first half from the first time: the losses
 * of both are the golden ones. A logit and the sum of exponentials may each be off by BOUND. */
static void check_packed(const struct model_run *run, const struct golden *g,
                         const char *name)
{
    const int64_t T = g->T, half = T / 2, rows = T + T - half, start[] = {0, 2};
    const struct sequence text[] = {{0, 0, 0, T}, {0, half, T, T - half}};
    int32_t ids[2 * T], target[2 * T];
    float nll[2 * T];
    double worst = 0;
    for (int64_t r = 0; r < rows; r++) {
        const int64_t t = r < T ? r : r - T + half;
        ids[r] = g->ids[t];
        target[r] = t + 1 < T ? g->ids[t + 1] : -1;
    }
    const struct packed_windows w = {1, rows, T, text, start, ids, target};
    if (model_nll_packed(run, &w, nll))
        fail_msg("%s: %s", name, err_text());
    for (int64_t r = 0; r < rows; r++) {
        const int64_t t = r < T ? r : r - T + half;
        const double want =
            target[r] < 0 ? 0 : loss_of(g->logits + t * g->V, g->V, target[r]);
        const double error = fabs((double)nll[r] - want);
        worst = isnan(worst) || error <= worst ? worst : error; /* NaN stays */
    }
    if (!(worst <= 2 * BOUND * range_of(g->logits, T * g->V)))
        fail_msg("%s on %s: packed losses differ by %g", name, dev_name(run->dev), worst);
}

static void check_model(struct dev *d, const char *name)
{
    struct golden g;
    float *logits;
    err_clear();
    if (golden_open(&g, name))
        fail_msg("%s: %s", name, err_text());
    assert_int_equal(mem_alloc(&logits, (size_t)(g.T * g.V), sizeof(float)), OK);
    const struct model_run run = {
        .dev = d, .arch = hf_arch(g.model), .src = hf_source(g.model), .act = DT_F32};
    if (model_logits(&run, g.ids, 1, g.T, logits))
        fail_msg("%s: %s", name, err_text());
    const double error = golden_error(logits, g.logits, g.T * g.V);
    print_message("%-16s %s: error %.2g of the range\n", name, dev_name(d), error);
    if (!(error <= BOUND))
        fail_msg("%s on %s: logits differ by %g of their range", name, dev_name(d), error);
    check_packed(&run, &g, name);
    mem_free(logits);
    golden_close(&g);
}

static void check_device(const char *device)
{
    struct dev *d = NULL;
    const struct dev_settings s = {.name = device, .threads = 2};
    err_clear();
    if (dev_open(&d, &s))
        fail_msg("%s", err_text());
    for (int i = 0; i < golden_count; i++)
        check_model(d, golden_name[i]);
    dev_close(&d);
}

static void test_ref(void **state)
{
    check_device("ref");
}

static void test_cpu(void **state)
{
    check_device("cpu");
}

static void test_other(void **state)
{
    if (!getenv("GOLDEN_DEVICE"))
        skip();
    check_device(getenv("GOLDEN_DEVICE"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ref),
        cmocka_unit_test(test_cpu),
        cmocka_unit_test(test_other),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
