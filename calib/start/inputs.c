/* SPDX-License-Identifier: MIT */
#include "calib/start/inputs.h"

static const enum lin_input inputs[N_LIN] = {
    [LIN_Q] = INPUT_QKV,    [LIN_K] = INPUT_QKV,        [LIN_V] = INPUT_QKV,
    [LIN_O] = INPUT_O,      [LIN_GATE] = INPUT_GATE_UP, [LIN_UP] = INPUT_GATE_UP,
    [LIN_DOWN] = INPUT_DOWN};

/* Projections that read the same input agree in its columns and parts. */
static const enum lin some_reader[N_INPUTS] = {[INPUT_QKV] = LIN_Q,
                                               [INPUT_O] = LIN_O,
                                               [INPUT_GATE_UP] = LIN_GATE,
                                               [INPUT_DOWN] = LIN_DOWN};

enum lin_input input_of(int l)
{
    return inputs[l];
}

int64_t input_columns(const struct arch *a, enum lin_input i)
{
    return arch_in(a, some_reader[i]);
}

int64_t input_parts(const struct arch *a, enum lin_input i)
{
    return arch_stacked(a, some_reader[i]);
}

struct tensor input_acts(const struct block_acts *acts, const struct arch *a,
                         enum lin_input i)
{
    switch (i) {
    case INPUT_QKV:
        return acts->n1;
    case INPUT_O:
        return acts->o;
    case INPUT_GATE_UP:
        return a->n_experts ? acts->experts.x : acts->n2;
    default:
        return acts->m;
    }
}

bool input_rows(struct tensor *x, const struct block_acts *acts, const struct arch *a,
                enum lin_input i, int64_t part)
{
    const struct tensor all = input_acts(acts, a, i);
    const int64_t *first = acts->experts.route.first;
    if (!arch_of_experts(a, some_reader[i])) {
        *x = all;
        return true;
    }
    if (first[part + 1] == first[part])
        return false;
    *x = tensor_rows(all, first[part], first[part + 1] - first[part]);
    return true;
}

bool input_fill_unreached(double *x, int64_t n, int64_t step)
{
    bool any = false;
    for (int64_t i = 0; i < n; i++)
        any = any || x[i * step] > 0;
    for (int64_t i = 0; i < n && !any; i++)
        x[i * step] = 1;
    return !any;
}
