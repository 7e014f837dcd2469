/* SPDX-License-Identifier: MIT */
#include "convert/artifact/artifact_plan.h"

#include "convert/format/bitpack.h"
#include "convert/format/tensor_names.h"
#include "kernels/base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Returns true if name is "MODULE.weight". */
static bool is_weight_of(const char *name, const char *module)
{
    const size_t n = strlen(module);
    return !strncmp(name, module, n) && !strcmp(name + n, ".weight");
}

/* Returns the projection whose weight is named, or -1. */
static int linear_of(const struct arch *a, const char *rest)
{
    for (int i = 0; i < N_LIN; i++)
        if (is_weight_of(rest, arch_lin_module(a, i)))
            return i;
    return -1;
}

/* Returns the norm whose gain is named, or -1. rest: what layer_of_tensor() leaves of a name, or
 * the whole name of a tensor outside the layers. */
static int gain_of(const struct arch *a, const char *rest)
{
    for (int g = 0; g < N_GAINS; g++)
        if (arch_gain(a, a->n_layers - 1, (enum norm_gain)g) &&
            is_weight_of(rest, arch_norm_module(a, (enum norm_gain)g)))
            return g;
    return -1;
}

/* A tensor and its content, until all are in order. */
struct planned {
    struct out_tensor t;
    struct out_content is;
};

struct list {
    struct planned *tensor; /* owned */
    size_t n, room;
};

static enum err add(struct list *l, const struct out_tensor *t, struct out_content is)
{
    if (l->n == l->room) {
        const size_t room = l->room ? l->room * 2 : 256;
        TRY(mem_resize(&l->tensor, l->n, room, sizeof(*l->tensor)));
        l->room = room;
    }
    l->tensor[l->n++] = (struct planned){*t, is};
    return OK;
}

static enum err set_name(struct out_tensor *t, const char *head, const char *tail)
{
    const int n = snprintf(t->name, sizeof(t->name), "%s%s", head, tail);
    FAIL_IF(n < 0 || (size_t)n >= sizeof(t->name), ERR_SUPPORT,
            "tensor %.60s...: its name is longer than %zu characters", head,
            sizeof(t->name) - 1);
    return OK;
}

static enum err add_carried(struct list *l, const struct st_tensor *src, int64_t layer)
{
    struct out_tensor t = {.dtype = src->dtype};
    FAIL_IF(src->dtype == DT_OTHER, ERR_SUPPORT,
            "tensor %s: dtype %s cannot be carried over", src->name, src->dtype_name);
    FAIL_IF(src->n_dims > TENSOR_MAX_DIMS, ERR_SUPPORT,
            "tensor %s: %d dimensions, at most %d can be carried over", src->name,
            src->n_dims, TENSOR_MAX_DIMS);
    TRY(set_name(&t, src->name, ""));
    t.n_dims = src->n_dims;
    memcpy(t.dim, src->dim, sizeof(t.dim));
    return add(l, &t, (struct out_content){OUT_CARRY, layer, .src = src});
}

static enum err add_gain(struct list *l, const struct st_tensor *src, int64_t layer,
                         enum norm_gain gain)
{
    struct out_tensor t = {.dtype = DT_F32, .n_dims = src->n_dims};
    memcpy(t.dim, src->dim, sizeof(t.dim));
    TRY(set_name(&t, src->name, ""));
    return add(l, &t, (struct out_content){OUT_GAIN, layer, .gain = gain, .src = src});
}

static enum err add_packed(struct list *l, enum out_kind kind, const char *base,
                           int64_t layer, int lin, int64_t rows, int64_t cols)
{
    static const char *const tail[] = {
        [OUT_QWEIGHT] = ".qweight", [OUT_SCALES] = ".scales", [OUT_ZEROS] = ".zeros"};
    struct out_tensor t = {.dtype = kind == OUT_SCALES ? DT_F16 : DT_U8, .n_dims = 2};
    t.dim[0] = rows;
    t.dim[1] = cols;
    TRY(set_name(&t, base, tail[kind]));
    return add(l, &t, (struct out_content){kind, layer, .lin = lin});
}

/* Adds codes, scales and zeros in place of a weight NAME.weight. */
static enum err add_linear(struct list *l, const struct st_tensor *src, int64_t layer,
                           int lin, struct lin_format f)
{
    char base[192];
    const int64_t groups = weight_groups(src->dim[1], f.group_size);
    const size_t name = strlen(src->name) - strlen(".weight");
    snprintf(base, sizeof(base), "%.*s", (int)name, src->name);
    TRY(add_packed(l, OUT_QWEIGHT, base, layer, lin, src->dim[0],
                   bitpack_bytes(src->dim[1], f.bits)));
    TRY(add_packed(l, OUT_SCALES, base, layer, lin, src->dim[0], groups));
    return add_packed(l, OUT_ZEROS, base, layer, lin, src->dim[0],
                      bitpack_bytes(groups, f.bits));
}

static enum err add_cache(struct list *l, int64_t layer, int64_t channels)
{
    static const char *const name[] = {[OUT_K_SCALE] = ".k_scale",
                                       [OUT_K_SHIFT] = ".k_shift",
                                       [OUT_V_SCALE] = ".v_scale",
                                       [OUT_V_SHIFT] = ".v_shift"};
    for (int kind = OUT_K_SCALE; kind <= OUT_V_SHIFT; kind++) {
        struct out_tensor t = {.dtype = DT_F32, .n_dims = 1, .dim = {channels}};
        layer_tensor_name(t.name, sizeof(t.name), layer, "self_attn", name[kind]);
        TRY(add(l, &t, (struct out_content){(enum out_kind)kind, layer}));
    }
    return OK;
}

static enum err add_source_tensor(struct list *l, const struct arch *a,
                                  const struct st_tensor *src, const struct weight_spec *w)
{
    const char *rest = "";
    const int64_t layer = layer_of_tensor(src->name, &rest);
    const int lin = layer >= 0 && layer < a->n_layers ? linear_of(a, rest) : -1;
    if (a->tied && !strcmp(src->name, "lm_head.weight"))
        return OK;
    const int gain =
        w->refined && layer < a->n_layers ? gain_of(a, layer < 0 ? src->name : rest) : -1;
    if (gain >= 0)
        return add_gain(l, src, layer < 0 ? a->n_layers : layer, (enum norm_gain)gain);
    if (lin >= 0 && weight_format(w, layer, lin).bits < 16)
        return add_linear(l, src, layer, lin, weight_format(w, layer, lin));
    if (layer >= 0)
        return add_carried(l, src, layer < a->n_layers ? layer : a->n_layers);
    const bool front = !strcmp(src->name, "model.embed_tokens.weight");
    const bool end = front || !strcmp(src->name, "lm_head.weight");
    const int64_t place = front ? -1 : a->n_layers;
    if (end && weight_quantizes_head(w))
        return add_linear(l, src, place, front ? OUT_EMBED : OUT_HEAD, head_format(w));
    return add_carried(l, src, place);
}

static int compare(const void *pa, const void *pb)
{
    const struct planned *a = pa, *b = pb;
    if (a->is.layer != b->is.layer)
        return a->is.layer < b->is.layer ? -1 : 1;
    const size_t wa = dtype_bytes(a->t.dtype), wb = dtype_bytes(b->t.dtype);
    if (wa != wb)
        return wa > wb ? -1 : 1;
    return strcmp(a->t.name, b->t.name);
}

/* Lists the tensors in their order. */
static enum err list_tensors(struct list *l, const struct hf_model *m,
                             const struct artifact_settings *s)
{
    const struct arch *a = hf_arch(m);
    for (int64_t i = 0; i < hf_tensor_count(m); i++)
        TRY(add_source_tensor(l, a, hf_tensor_at(m, i), &s->weights));
    for (int64_t i = 0; i < a->n_layers; i++)
        TRY(add_cache(l, i, a->n_kv * a->head_dim));
    qsort(l->tensor, l->n, sizeof(*l->tensor), compare);
    for (size_t i = 1; i < l->n; i++)
        FAIL_IF(!strcmp(l->tensor[i].t.name, l->tensor[i - 1].t.name), ERR_FORMAT,
                "tensor %s: the checkpoint has a tensor with a name that the artifact uses "
                "for another",
                l->tensor[i].t.name);
    return OK;
}

enum err artifact_plan_make(struct artifact_plan *out, const struct hf_model *m,
                            const struct artifact_settings *s)
{
    enum err err = OK;
    struct artifact_plan p = {0};
    struct list l = {0};
    TRY_OUT(list_tensors(&l, m, s));
    TRY_OUT(mem_calloc(&p.content, l.n, sizeof(*p.content)));
    for (size_t i = 0; i < l.n; i++) {
        p.content[i] = l.tensor[i].is;
        TRY_OUT(out_plan_add(&p.out, &l.tensor[i].t));
    }
    TRY_OUT(out_plan_cut(&p.out, s->shard_bytes));
    *out = p;
    p = (struct artifact_plan){0};
out:
    artifact_plan_free(&p);
    mem_free(l.tensor);
    return err;
}

void artifact_plan_free(struct artifact_plan *p)
{
    out_plan_free(&p->out);
    mem_free(p->content);
    *p = (struct artifact_plan){0};
}
