/* SPDX-License-Identifier: MIT */
#include "tools/tune/tune.h"

#include "convert/format/sizes.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "tools/eval/statistics.h"

#include <math.h>

/* --- candidates --------------------------------------------------------------------- */

static struct tune_size weight_size(const struct arch *a, int bits, int64_t group)
{
    const struct weight_spec w = {.bits = bits, .group_size = group};
    return (struct tune_size){group, shape_weight_bits(a, &w)};
}

void tune_weight_sizes(struct tune_sizes *out, const struct arch *a, int bits)
{
    static const int64_t group[] = {16, 32, 64, 128, 256, 512};
    int64_t widest = 0;
    for (int l = 0; l < N_LIN; l++)
        widest = arch_in(a, l) > widest ? arch_in(a, l) : widest;
    out->n = 0;
    for (size_t i = 0; i < ARRAY_LEN(group); i++) {
        if (group[i] < widest)
            out->size[out->n++] = weight_size(a, bits, group[i]);
    }
    out->size[out->n++] = weight_size(a, bits, 0);
    for (int b = QUANT_BITS_MIN; b <= QUANT_BITS_MAX; b++)
        out->least[b] = weight_size(a, b, 0).bits;
}

void tune_kv_sizes(struct tune_sizes *out, const struct arch *a, const struct kv_spec *kv)
{
    out->n = 0;
    for (int64_t part = 4; part >= 1; part /= 2) {
        struct kv_spec s = *kv;
        s.group_size = a->head_dim / part;
        if (a->head_dim % part || (part > 1 && s.group_size < 4))
            continue;
        out->size[out->n++] = (struct tune_size){s.group_size, kv_mean_bits(a, &s)};
    }
    struct kv_spec whole = *kv;
    whole.group_size = a->head_dim;
    for (whole.bits = QUANT_BITS_MIN; whole.bits <= QUANT_BITS_MAX; whole.bits++)
        out->least[whole.bits] = kv_mean_bits(a, &whole);
}

/* --- trials ------------------------------------------------------------------------- */

int tune_choices(const struct tune_sizes *s)
{
    return s->n + (s->mix.text != NULL);
}

int tune_cell(const struct tune *t, int w, int k)
{
    return 1 + w * tune_choices(&t->kv) + k;
}

void tune_pair(int *w, int *k, const struct tune *t, int cell)
{
    *w = (cell - 1) / tune_choices(&t->kv);
    *k = (cell - 1) % tune_choices(&t->kv);
}

static bool was_tried(const struct tune *t, int cell)
{
    for (int i = 0; i < t->n_tried; i++) {
        if (t->tried[i] == cell)
            return true;
    }
    return false;
}

enum err tune_try(struct tune *t, const int *cell, int n)
{
    for (int i = 0; i < t->sweep.plan.n_cells; i++)
        t->sweep.run[i].skip = true;
    for (int i = 0; i < n; i++) {
        t->sweep.run[cell[i]].skip = false;
        if (cell[i] && !was_tried(t, cell[i]))
            t->tried[t->n_tried++] = cell[i];
    }
    TRY(sweep_execute(&t->sweep));
    return sweep_check_verified(&t->sweep);
}

/* Returns a number of a result, or NAN if it is missing. */
static double number_or_nan(const json_t *v)
{
    return json_is_number(v) ? json_number_value(v) : NAN;
}

static const json_t *result_of(const struct tune *t, int cell)
{
    size_t i;
    json_t *row;
    json_array_foreach(t->sweep.results, i, row)
    {
        if (json_equal(json_object_get(row, "identity"), t->sweep.run[cell].identity))
            return row;
    }
    return NULL;
}

/* Computes the difference of two cells' losses in nats, a - b, paired over windows. */
static enum err paired(struct estimate *out, const json_t *a, const json_t *b)
{
    const json_t *nll_a = json_object_get(a, "window_nll");
    const json_t *nll_b = json_object_get(b, "window_nll");
    const size_t n = json_array_size(nll_a);
    double *difference;
    FAIL_IF(n < 1 || n != json_array_size(nll_b), ERR_FORMAT,
            "results.jsonl: window_nll: two cells were not evaluated on the same windows");
    TRY(mem_alloc(&difference, n, sizeof(*difference)));
    for (size_t i = 0; i < n; i++)
        difference[i] = number_or_nan(json_array_get(nll_a, i)) -
                        number_or_nan(json_array_get(nll_b, i));
    *out = estimate_mean(difference, (int64_t)n);
    mem_free(difference);
    return OK;
}

static double bits_of(const struct tune_sizes *s, int i)
{
    return i < s->n ? s->size[i].bits : s->mix.bits;
}

static struct tune_outcome untried(const struct tune *t, int cell)
{
    int w, k;
    tune_pair(&w, &k, t, cell);
    return (struct tune_outcome){.ppl = NAN,
                                 .increase = NAN,
                                 .increase_stderr = NAN,
                                 .weight_bits = bits_of(&t->weights, w),
                                 .kv_bits = bits_of(&t->kv, k)};
}

enum err tune_outcome(struct tune_outcome *out, const struct tune *t, int cell)
{
    if (t->settings.no_trials) {
        *out = untried(t, cell);
        return OK;
    }
    const json_t *row = result_of(t, cell), *plain = result_of(t, 0);
    struct estimate nats;
    FAIL_IF(!row || !plain, ERR_FORMAT, "%s: lacks a result of cell '%s'", t->sweep.out_dir,
            t->sweep.plan.cell[cell].name);
    TRY(paired(&nats, row, plain));
    *out = (struct tune_outcome){
        .ppl = json_number_value(json_object_get(row, "ppl")),
        .increase = expm1(nats.mean),
        .increase_stderr = exp(nats.mean) * nats.stderr_,
        .weight_bits = json_number_value(json_object_get(row, "weight_bits")),
        .kv_bits = json_number_value(json_object_get(row, "kv_bits"))};
    return OK;
}

/* --- the search --------------------------------------------------------------------- */

/* Returns the first candidate within the bound, -1: none. Candidates before it have more
 * bits. */
static int first_within(const struct tune_sizes *s, double bound)
{
    for (int i = 0; i < s->n; i++) {
        if (s->size[i].bits <= bound)
            return i;
    }
    return -1;
}

/* No group size of the configuration's bits is within the bound: says which bits are. Mixes go
 * beyond these bits by themselves, but a search compares them with one format. */
static enum err refuse_bound(const struct tune_sizes *s, const char *option, double bound,
                             const char *key, const char *what)
{
    int bits = QUANT_BITS_MAX;
    while (bits >= QUANT_BITS_MIN && !(s->least[bits] <= bound))
        bits--;
    FAIL_IF(
        bits < QUANT_BITS_MIN, ERR_USAGE,
        "--%s %g: even with --set %s=%d these shapes need at least %.3f bits per %s; give "
        "a larger bound",
        option, bound, key, QUANT_BITS_MIN, s->least[QUANT_BITS_MIN], what);
    FAIL(ERR_USAGE,
         "--%s %g: these shapes need at least %.3f bits per %s at the configuration's %s; "
         "give --set %s=%d (at least %.3f), from which mixes go up and down",
         option, bound, s->size[s->n - 1].bits, what, key, key, bits, s->least[bits]);
}

enum err tune_bounds(int *w, int *k, const struct tune *t)
{
    const struct tune_settings *own = &t->settings;
    *w = first_within(&t->weights, own->max_bits);
    if (*w < 0)
        return refuse_bound(&t->weights, "max-bits", own->max_bits, "weights.bits",
                            "weight");
    *k = first_within(&t->kv, own->max_kv_bits > 0 ? own->max_kv_bits : own->max_bits);
    if (*k < 0 && own->max_kv_bits > 0)
        return refuse_bound(&t->kv, "max-kv-bits", own->max_kv_bits, "kv.bits",
                            "cache element");
    if (*k < 0) {
        *k = t->kv.n - 1;
        log_info("cache: these heads need at least %.3f bits per element",
                 t->kv.size[*k].bits);
    }
    return OK;
}

static enum err take_best(struct tune *t)
{
    double least = INFINITY;
    for (int i = 0; i < t->n_tried; i++) {
        struct tune_outcome o;
        TRY(tune_outcome(&o, t, t->tried[i]));
        if (o.ppl < least) {
            least = o.ppl;
            t->best = t->tried[i];
        }
    }
    return OK;
}

/* Tries the finest groups within the bound and the next coarser of each, since finer groups
 * are rarely worse. Then it tries each mix with the other side's finest groups, and both
 * mixes. */
enum err tune_by_bits(struct tune *t)
{
    int w, k, cell[8] = {0}, n = 1;
    const bool mix_w = t->weights.mix.text, mix_k = t->kv.mix.text;
    TRY(tune_bounds(&w, &k, t));
    for (int i = w; i < w + TUNE_FINEST && i < t->weights.n; i++) {
        for (int j = k; j < k + TUNE_FINEST && j < t->kv.n; j++)
            cell[n++] = tune_cell(t, i, j);
    }
    if (mix_w)
        cell[n++] = tune_cell(t, t->weights.n, k);
    if (mix_k)
        cell[n++] = tune_cell(t, w, t->kv.n);
    if (mix_w && mix_k)
        cell[n++] = tune_cell(t, t->weights.n, t->kv.n);
    TRY(tune_try(t, cell, n));
    return take_best(t);
}

enum err tune_by_estimate(struct tune *t)
{
    int w, k;
    TRY(tune_bounds(&w, &k, t));
    t->best =
        tune_cell(t, t->weights.mix.text ? t->weights.n : w, t->kv.mix.text ? t->kv.n : k);
    t->tried[t->n_tried++] = t->best;
    return OK;
}

/* Returns the gain in nats per bit of the step from o to cell. */
static enum err worth(double *out, const struct tune *t, const struct tune_outcome *o,
                      int cell)
{
    struct tune_outcome next;
    TRY(tune_outcome(&next, t, cell));
    const double cost = next.weight_bits + next.kv_bits - o->weight_bits - o->kv_bits;
    *out = (log1p(o->increase) - log1p(next.increase)) / (cost > 0 ? cost : 1e-9);
    return OK;
}

/* Finds the tried cell within the increase that has the fewest bits, summed over weights
 * and cache. */
static enum err take_cheapest(struct tune *t)
{
    double least = INFINITY;
    for (int i = 0; i < t->n_tried; i++) {
        struct tune_outcome o;
        TRY(tune_outcome(&o, t, t->tried[i]));
        if (o.increase <= t->settings.max_increase && o.weight_bits + o.kv_bits < least) {
            least = o.weight_bits + o.kv_bits;
            t->best = t->tried[i];
        }
    }
    return OK;
}

/* Tries both steps to finer groups from (*w, *k) and takes the one that gains more per bit.
 * false: there is none. */
static enum err step_finer(bool *any, int *w, int *k, struct tune *t)
{
    int step[2], n = 0;
    double gain[2] = {0, 0};
    struct tune_outcome o;
    if (*w > 0)
        step[n++] = tune_cell(t, *w - 1, *k);
    if (*k > 0)
        step[n++] = tune_cell(t, *w, *k - 1);
    *any = n > 0;
    if (!n)
        return OK;
    TRY(tune_outcome(&o, t, tune_cell(t, *w, *k)));
    TRY(tune_try(t, step, n));
    for (int i = 0; i < n; i++)
        TRY(worth(&gain[i], t, &o, step[i]));
    tune_pair(w, k, t, step[n == 2 && gain[1] > gain[0]]);
    return OK;
}

enum err tune_by_increase(struct tune *t)
{
    int w = t->weights.n - 1, k = t->kv.n - 1;
    const int start[2] = {0, tune_cell(t, w, k)};
    bool more = true;
    TRY(tune_try(t, start, 2));
    TRY(take_cheapest(t));
    while (t->best < 0 && more) {
        TRY(step_finer(&more, &w, &k, t));
        TRY(take_cheapest(t));
    }
    return OK;
}
