/* SPDX-License-Identifier: MIT
 *
 * Dynamic programming over the items. The states after an item are the Pareto front of cost
 * and loss: pairs that some choice reaches and no other pair beats in both.
 *
 * The front can be as large as the number of different costs, so states that cannot lead to
 * the optimum are dropped. With a price on cost (a Lagrange multiplier), a state's loss
 * plus the least priced loss of every later item is a lower bound. A choice that is known
 * to fit is an upper bound. Both come from the same bisection on the price; with many items
 * they nearly coincide. Nothing is rounded, so the result is exact. */
#include "tools/tune/allocate.h"

#include "kernels/base/mem.h"

#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

/* Relative difference of sums of losses that are added in another order. */
#define SLACK 1e-9

/* A state, and the state after the previous item that it was reached from. */
struct state {
    int64_t cost;
    double loss;
    size_t from;
    int option;
};

struct front {
    struct state *state; /* by rising cost and falling loss */
    size_t n;
};

struct knapsack {
    const struct allocate_item *item;
    int n;
    int64_t budget;
    double price, known; /* price of a unit of cost; loss of a choice that fits */
    double *rest;        /* [n + 1] least priced loss of items i to n - 1 */
    struct front *front; /* [n + 1] states after i items */
};

/* --- the price ---------------------------------------------------------------------- */

/* The Lagrangian of one option. At a given price items no longer share the budget, so each
 * takes its own best option. */
static double priced(const struct allocate_option *o, double price)
{
    return o->loss + price * (double)o->cost;
}

/* Returns the option with the least priced loss, the cheaper one if equal. */
static int pick(const struct allocate_item *item, double price)
{
    int best = 0;
    for (int i = 1; i < item->n; i++) {
        const double a = priced(&item->option[i], price);
        const double b = priced(&item->option[best], price);
        if (a < b || (a == b && item->option[i].cost < item->option[best].cost))
            best = i;
    }
    return best;
}

static int pick_cheapest(const struct allocate_item *item)
{
    int best = 0;
    for (int i = 1; i < item->n; i++) {
        const struct allocate_option *a = &item->option[i], *b = &item->option[best];
        if (a->cost < b->cost || (a->cost == b->cost && a->loss < b->loss))
            best = i;
    }
    return best;
}

/* Returns whether the choices at this price fit. If so, their loss is an upper bound. */
static bool try_price(struct knapsack *k, double price)
{
    int64_t cost = 0;
    double loss = 0;
    for (int i = 0; i < k->n; i++) {
        const struct allocate_option *o = &k->item[i].option[pick(&k->item[i], price)];
        cost += o->cost;
        loss += o->loss;
    }
    if (cost > k->budget)
        return false;
    k->known = fmin(k->known, loss);
    return true;
}

static void cheapest(const struct knapsack *k, int64_t *cost, double *loss)
{
    *cost = 0;
    *loss = 0;
    for (int i = 0; i < k->n; i++) {
        const struct allocate_option *o = &k->item[i].option[pick_cheapest(&k->item[i])];
        *cost += o->cost;
        *loss += o->loss;
    }
}

/* Finds the least price whose choices fit, to the precision of doubles. */
static void find_price(struct knapsack *k)
{
    double lo = 0, hi = 1e-30;
    if (try_price(k, 0))
        return;
    for (int i = 0; i < 300 && !try_price(k, hi); i++)
        hi *= 10;
    for (int i = 0; i < 200 && lo < hi; i++) {
        const double mid = lo > 0 ? sqrt(lo) * sqrt(hi) : hi * 1e-3;
        if (mid <= lo || mid >= hi || mid < 1e-300)
            break;
        if (try_price(k, mid))
            hi = mid;
        else
            lo = mid;
    }
    k->price = hi;
}

static void sum_rest(struct knapsack *k)
{
    k->rest[k->n] = 0;
    for (int i = k->n - 1; i >= 0; i--) {
        const struct allocate_option *o = &k->item[i].option[pick(&k->item[i], k->price)];
        k->rest[i] = k->rest[i + 1] + priced(o, k->price);
    }
}

/* --- states ------------------------------------------------------------------------- */

static int compare(const void *a, const void *b)
{
    const struct state *x = a, *y = b;
    if (x->cost != y->cost)
        return x->cost < y->cost ? -1 : 1;
    if (x->loss != y->loss)
        return x->loss < y->loss ? -1 : 1;
    if (x->from != y->from)
        return x->from < y->from ? -1 : 1;
    return (x->option > y->option) - (x->option < y->option);
}

/* Returns whether a state after i items can still lead to the optimum. */
static bool hopeful(const struct knapsack *k, const struct state *s, int i)
{
    const double spent = s->loss + k->price * (double)s->cost;
    const double least = spent + k->rest[i] - k->price * (double)k->budget;
    const double scale = fabs(spent) + fabs(k->rest[i]) + fabs(k->known);
    return s->cost <= k->budget && least <= k->known + SLACK * scale;
}

/* Keeps the Pareto front of sorted states: those that lose less than every cheaper one. */
static void keep_best(struct front *f)
{
    size_t n = 0;
    qsort(f->state, f->n, sizeof(*f->state), compare);
    for (size_t i = 0; i < f->n; i++)
        if (!n || f->state[i].loss < f->state[n - 1].loss)
            f->state[n++] = f->state[i];
    f->n = n;
}

static enum err extend(struct knapsack *k, int i)
{
    const struct front *f = &k->front[i];
    const struct allocate_item *item = &k->item[i];
    struct front *next = &k->front[i + 1];
    TRY(mem_alloc(&next->state, f->n * (size_t)item->n, sizeof(*next->state)));
    for (size_t j = 0; j < f->n; j++)
        for (int o = 0; o < item->n; o++) {
            const struct state s = {.cost = f->state[j].cost + item->option[o].cost,
                                    .loss = f->state[j].loss + item->option[o].loss,
                                    .from = j,
                                    .option = o};
            if (hopeful(k, &s, i + 1))
                next->state[next->n++] = s;
        }
    keep_best(next);
    FAIL_IF(!next->n, ERR_NUMERIC, "no choice of options is left after item %d", i);
    return mem_resize(&next->state, f->n * (size_t)item->n, next->n, sizeof(*next->state));
}

/* The last state has the least loss. */
static void walk_back(int *choice, const struct knapsack *k)
{
    size_t at = k->front[k->n].n - 1;
    for (int i = k->n; i > 0; i--) {
        const struct state *s = &k->front[i].state[at];
        choice[i - 1] = s->option;
        at = s->from;
    }
}

static enum err solve(int *choice, struct knapsack *k)
{
    TRY(mem_calloc(&k->rest, (size_t)k->n + 1, sizeof(*k->rest)));
    TRY(mem_calloc(&k->front, (size_t)k->n + 1, sizeof(*k->front)));
    TRY(mem_calloc(&k->front[0].state, 1, sizeof(struct state)));
    k->front[0].n = 1;
    find_price(k);
    sum_rest(k);
    for (int i = 0; i < k->n; i++)
        TRY(extend(k, i));
    walk_back(choice, k);
    return OK;
}

static enum err check(const struct allocate_item *item, int n)
{
    for (int i = 0; i < n; i++)
        for (int o = 0; o < item[i].n; o++)
            FAIL_IF(!isfinite(item[i].option[o].loss), ERR_NUMERIC,
                    "the loss of option %d of item %d is not finite", o, i);
    return OK;
}

enum err allocate(int *choice, const struct allocate_item *item, int n_items,
                  int64_t budget)
{
    struct knapsack k = {.item = item, .n = n_items, .budget = budget};
    int64_t least;
    TRY(check(item, n_items));
    cheapest(&k, &least, &k.known);
    FAIL_IF(least > budget, ERR_USAGE,
            "the cheapest options cost %" PRId64 ", the budget is %" PRId64, least, budget);
    const enum err err = solve(choice, &k);
    for (int i = 0; k.front && i <= n_items; i++)
        mem_free(k.front[i].state);
    mem_free(k.front);
    mem_free(k.rest);
    return err;
}
