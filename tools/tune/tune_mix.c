/* SPDX-License-Identifier: MIT */
#include "tools/tune/tune_mix.h"

#include "calib/sensitivity.h"
#include "convert/format/sizes.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "kernels/tensor/quant.h"
#include "tools/tune/allocate.h"
#include "tools/tune/tune_sensitivity.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#define FORMATS 35 /* 7 code widths in 5 group sizes */
#define KV_SIDES 2

/* --- formats ------------------------------------------------------------------------ */

struct formats {
    struct mix_format f[FORMATS];
    int n;
};

static void add_format(struct formats *l, int bits, int64_t group)
{
    l->f[l->n++] = (struct mix_format){.bits = bits, .group_size = group};
}

static bool bits_listed(const int *bits, int n, int want)
{
    for (int i = 0; i < n; i++)
        if (bits[i] == want)
            return true;
    return false;
}

static void weight_formats(struct formats *l, const struct arch *a, int own_bits)
{
    static const int64_t group[] = {32, 64, 128, 256};
    int bits[7] = {2, 3, 4, 5, 6, 8}, n = 6;
    int64_t widest = 0;
    if (!bits_listed(bits, n, own_bits))
        bits[n++] = own_bits;
    for (int i = 0; i < N_LIN; i++)
        widest = arch_in(a, i) > widest ? arch_in(a, i) : widest;
    for (int b = 0; b < n; b++) {
        for (size_t g = 0; g < ARRAY_LEN(group); g++)
            if (group[g] < widest)
                add_format(l, bits[b], group[g]);
        add_format(l, bits[b], 0);
    }
}

static void kv_formats(struct formats *l, const struct arch *a)
{
    static const int64_t group[] = {16, 32, 64, 128};
    for (int bits = QUANT_BITS_MIN; bits <= QUANT_BITS_MAX; bits++) {
        for (size_t g = 0; g < ARRAY_LEN(group); g++)
            if (group[g] < a->head_dim && a->head_dim % group[g] == 0)
                add_format(l, bits, group[g]);
        add_format(l, bits, a->head_dim);
    }
}

/* --- one budget --------------------------------------------------------------------- */

/* The items of the choice: every kind in every layer, or every kind in all layers
 * together. */
struct problem {
    enum mix_of of;
    const struct tune_sizes *sizes; /* of the trials without a mix, in own_bits */
    int finest;                     /* index in sizes of the finest trial */
    int64_t own_bits;
    double max_bits;
    const struct arch *arch;
    const struct formats *formats;
    const double *loss; /* [layers][kinds][formats] */
    int kinds;
    bool per_layer;
    int64_t elements; /* weights, or cache elements per token */
    int64_t (*cost)(const struct problem *p, int kind, int format); /* bits in one layer */
    struct allocate_option *option;                                 /* [items][formats] */
    struct allocate_item *item;
    int n_items;
};

static int64_t weight_cost(const struct problem *p, int kind, int format)
{
    const struct mix_format *f = &p->formats->f[format];
    const struct lin_format lin = {f->bits, f->group_size};
    return 8 * (int64_t)shape_linear_bytes(arch_out(p->arch, kind), arch_in(p->arch, kind),
                                           lin);
}

static int64_t kv_cost(const struct problem *p, int kind, int format)
{
    const struct mix_format *f = &p->formats->f[format];
    (void)kind;
    return 8 * kv_row_bytes(p->arch, (struct kv_format){f->bits, f->group_size});
}

static double loss_of(const struct problem *p, int64_t layer, int kind, int format)
{
    return p->loss[(layer * p->kinds + kind) * p->formats->n + format];
}

static struct allocate_option option_of(const struct problem *p, int item, int format)
{
    const int kind = item % p->kinds;
    struct allocate_option o = {.cost = p->cost(p, kind, format)};
    if (p->per_layer) {
        o.loss = loss_of(p, item / p->kinds, kind, format);
        return o;
    }
    o.cost *= p->arch->n_layers;
    for (int64_t i = 0; i < p->arch->n_layers; i++)
        o.loss += loss_of(p, i, kind, format);
    return o;
}

static enum err make_items(struct problem *p)
{
    const int n = p->formats->n;
    p->n_items = p->kinds * (p->per_layer ? (int)p->arch->n_layers : 1);
    TRY(mem_alloc(&p->item, (size_t)p->n_items, sizeof(*p->item)));
    TRY(mem_alloc(&p->option, (size_t)(p->n_items * n), sizeof(*p->option)));
    for (int i = 0; i < p->n_items; i++) {
        p->item[i] = (struct allocate_item){p->option + i * n, n};
        for (int o = 0; o < n; o++)
            p->option[i * n + o] = option_of(p, i, o);
    }
    return OK;
}

/* Sums cost and loss over all items; choice NULL: option `one` for each. */
static void sum(const struct problem *p, const int *choice, int one, double *loss,
                int64_t *cost)
{
    *loss = 0;
    *cost = 0;
    for (int i = 0; i < p->n_items; i++) {
        const struct allocate_option *o = &p->item[i].option[choice ? choice[i] : one];
        *loss += o->loss;
        *cost += o->cost;
    }
}

/* Returns whether a trial without a mix has this format. */
static bool is_tried(const struct problem *p, const struct mix_format *f)
{
    const int end = p->finest + TUNE_FINEST;
    for (int i = p->finest; i < end && i < p->sizes->n; i++)
        if (f->bits == p->own_bits && f->group_size == p->sizes->size[i].group)
            return true;
    return false;
}

/* Returns the least loss of the formats that trials without a mix have for all items. INFINITY:
 * none of them has an estimate. Any other format for all items must be tried like a mix. */
static double uniform_loss(const struct problem *p)
{
    double least = INFINITY;
    for (int f = 0; f < p->formats->n; f++) {
        double loss;
        int64_t cost;
        sum(p, NULL, f, &loss, &cost);
        if (is_tried(p, &p->formats->f[f]))
            least = fmin(least, loss);
    }
    return least;
}

static enum err choice_text(char **out, const struct problem *p, const int *choice)
{
    struct mix *m = NULL;
    enum err err = OK;
    TRY(mix_new(&m, p->of));
    for (int i = 0; i < p->n_items && !err; i++) {
        const int64_t layer = p->per_layer ? i / p->kinds : MIX_ALL_LAYERS;
        err = mix_set(m, layer, layer, i % p->kinds, p->formats->f[choice[i]]);
    }
    if (!err)
        err = mix_text(out, m);
    mix_free(m);
    return err;
}

static enum err take_choice(struct tune_mix *out, const struct problem *p,
                            const int *choice)
{
    double loss;
    int64_t cost;
    char one[48] = "";
    const double uniform = uniform_loss(p);
    const char *what = p->of == MIX_WEIGHTS ? "weights" : "cache";
    sum(p, choice, 0, &loss, &cost);
    const double bits = (double)cost / (double)p->elements;
    if (isfinite(uniform))
        snprintf(one, sizeof(one), ", %.4f in one format", uniform);
    log_info("%s: estimated loss before calibration %.4f nats per token mixed at %.3f "
             "bits%s",
             what, loss, bits, one);
    if (loss >= uniform)
        return OK;
    out->bits = bits;
    TRY(choice_text(&out->text, p, choice));
    log_info("%s: %s", what, out->text);
    return OK;
}

static enum err solve(struct tune_mix *out, struct problem *p)
{
    const int64_t budget = (int64_t)floor(p->max_bits * (double)p->elements + 1e-6);
    int *choice = NULL;
    TRY(make_items(p));
    TRY(mem_alloc(&choice, (size_t)p->n_items, sizeof(*choice)));
    enum err err = allocate(choice, p->item, p->n_items, budget);
    if (!err)
        err = take_choice(out, p, choice);
    mem_free(choice);
    return err;
}

static enum err find_mix(struct tune_mix *out, struct problem *p)
{
    const enum err err = solve(out, p);
    mem_free(p->item);
    mem_free(p->option);
    return err ? err_add(err, "%s: ", p->of == MIX_WEIGHTS ? "weights" : "cache") : OK;
}

/* --- both --------------------------------------------------------------------------- */

static enum err find_both(struct tune *t, const struct sensitivity *s,
                          const struct recipe *r, const struct arch *a,
                          const struct formats *w, const struct formats *k,
                          const int finest[2])
{
    const struct tune_settings *own = &t->settings;
    const double kv_bits = own->max_kv_bits > 0 ? own->max_kv_bits : own->max_bits;
    struct problem weights = {.of = MIX_WEIGHTS,
                              .sizes = &t->weights,
                              .own_bits = r->weight_bits,
                              .finest = finest[0],
                              .max_bits = own->max_bits,
                              .arch = a,
                              .formats = w,
                              .loss = s->weight,
                              .kinds = N_LIN,
                              .per_layer = !t->settings.per_kind,
                              .elements = arch_block_params(a) * a->n_layers,
                              .cost = weight_cost};
    struct problem kv = {.of = MIX_KV,
                         .sizes = &t->kv,
                         .own_bits = r->kv_bits,
                         .finest = finest[1],
                         .max_bits = fmax(kv_bits, t->kv.size[finest[1]].bits),
                         .arch = a,
                         .formats = k,
                         .loss = s->kv,
                         .kinds = KV_SIDES,
                         .per_layer = !t->settings.per_kind,
                         .elements = KV_SIDES * a->n_kv * a->head_dim * a->n_layers,
                         .cost = kv_cost};
    TRY(find_mix(&t->weights.mix, &weights));
    return find_mix(&t->kv.mix, &kv);
}

enum err tune_find_mixes(struct tune *t, const struct recipe *r, const struct arch *a,
                         int finest_w, int finest_k)
{
    const int finest[2] = {finest_w, finest_k};
    struct formats w = {.n = 0}, k = {.n = 0};
    weight_formats(&w, a, (int)r->weight_bits);
    kv_formats(&k, a);
    struct sensitivity s = {.weight_format = w.f,
                            .kv_format = k.f,
                            .n_weight = w.n,
                            .n_kv = k.n,
                            .scale_bits = (int)r->scale_bits};
    enum err err = tune_sensitivity(&s, &t->settings, &t->model_crc, a);
    if (!err)
        err = find_both(t, &s, r, a, &w, &k, finest);
    sensitivity_free(&s);
    return err;
}
