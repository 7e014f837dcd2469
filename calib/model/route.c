/* SPDX-License-Identifier: MIT */
#include "calib/model/route.h"

#include "calib/model/carve.h"
#include "kernels/base/mem.h"

#include <math.h>
#include <string.h>

static void layout(struct route *r, struct carve *c, int64_t T)
{
    const int64_t R = T * r->k;
    r->first = carve_1d(c, DT_I64, r->E + 1).data;
    r->p = carve_1d(c, DT_F32, T * r->E).data;
    r->weight = carve_1d(c, DT_F32, R).data;
    r->grad = carve_1d(c, DT_F32, R).data;
    r->row_weight = carve_1d(c, DT_F32, R).data;
    r->expert = carve_1d(c, DT_I32, R).data;
    r->slot = carve_1d(c, DT_I32, R).data;
    r->token = carve_1d(c, DT_I32, R).data;
}

enum err route_alloc(struct route *r, const struct arch *a, int64_t T)
{
    struct route fresh = {.E = a->n_experts, .k = a->n_active, .norm = a->norm_active};
    struct carve c = {0};
    layout(&fresh, &c, T);
    TRY(mem_alloc(&fresh.memory, c.used, 1));
    c = (struct carve){.base = fresh.memory};
    layout(&fresh, &c, T);
    *r = fresh;
    return OK;
}

void route_free(struct route *r)
{
    mem_free(r->memory);
    *r = (struct route){0};
}

static void softmax(float *x, int64_t n)
{
    double max = -INFINITY, sum = 0;
    for (int64_t i = 0; i < n; i++)
        max = fmax(max, (double)x[i]);
    for (int64_t i = 0; i < n; i++)
        sum += exp((double)x[i] - max);
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)(exp((double)x[i] - max) / sum);
}

/* Returns true if e is one of the first n of a token's experts. */
static bool has(const int32_t *expert, int64_t n, int64_t e)
{
    for (int64_t j = 0; j < n; j++)
        if (expert[j] == e)
            return true;
    return false;
}

/* Returns the expert with the largest p apart from the n chosen before. A p that is not a number
 * is never larger, so that this ends with an expert in any case. */
static int32_t best(const float *p, int64_t E, const int32_t *chosen, int64_t n)
{
    int64_t top = -1;
    for (int64_t e = 0; e < E; e++)
        if (!has(chosen, n, e) && (top < 0 || p[e] > p[top]))
            top = e;
    return (int32_t)top;
}

static void choose(struct route *r, int64_t t)
{
    const float *p = r->p + t * r->E;
    int32_t *expert = r->expert + t * r->k;
    float *weight = r->weight + t * r->k;
    double sum = 0;
    for (int64_t j = 0; j < r->k; j++) {
        expert[j] = best(p, r->E, expert, j);
        weight[j] = p[expert[j]];
        sum += (double)weight[j];
    }
    for (int64_t j = 0; j < r->k && r->norm; j++)
        weight[j] = (float)((double)weight[j] / sum);
}

/* Sorts the choices by expert: counts first, then places. */
static void place_rows(struct route *r, int64_t T)
{
    const int64_t R = T * r->k;
    memset(r->first, 0, (size_t)(r->E + 1) * sizeof(*r->first));
    for (int64_t i = 0; i < R; i++)
        r->first[r->expert[i] + 1]++;
    for (int64_t e = 0; e < r->E; e++)
        r->first[e + 1] += r->first[e];
    for (int64_t i = 0; i < R; i++) {
        const int64_t row = r->first[r->expert[i]]++;
        r->slot[i] = (int32_t)row;
        r->token[row] = (int32_t)(i / r->k);
        r->row_weight[row] = r->weight[i];
    }
    /* first[e] has moved to where expert e + 1 begins. */
    memmove(r->first + 1, r->first, (size_t)r->E * sizeof(*r->first));
    r->first[0] = 0;
}

void route_choose(struct route *r, int64_t T)
{
    for (int64_t t = 0; t < T; t++) {
        softmax(r->p + t * r->E, r->E);
        choose(r, t);
    }
    place_rows(r, T);
}

void route_grads(struct route *r, int64_t T)
{
    for (int64_t t = 0; t < T; t++) {
        const int32_t *expert = r->expert + t * r->k;
        const float *g = r->grad + t * r->k, *w = r->weight + t * r->k;
        float *p = r->p + t * r->E;
        double mean = 0;
        for (int64_t j = 0; j < r->k; j++)
            mean += (double)g[j] * (double)w[j];
        for (int64_t e = 0; e < r->E; e++)
            p[e] = r->norm ? 0 : (float)(-(double)p[e] * mean);
        for (int64_t j = 0; j < r->k; j++)
            p[expert[j]] = (float)((double)w[j] * ((double)g[j] - mean));
    }
}
