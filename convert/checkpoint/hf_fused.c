/* SPDX-License-Identifier: MIT */
#include "convert/checkpoint/hf_fused.h"

#include "convert/checkpoint/packed/packed.h"
#include "convert/format/tensor_names.h"
#include "kernels/base/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static const struct hf_fused fused[] = {{"self_attn.qkv_proj", LIN_Q, 3},
                                        {"mlp.gate_up_proj", LIN_GATE, 2}};
#define PARTS 5  /* projections of a layer that are in such tensors, */
#define ROOM 128 /* and bytes for the name of one */
_Static_assert(LIN_K == LIN_Q + 1 && LIN_V == LIN_K + 1 && LIN_UP == LIN_GATE + 1,
               "parts follow each other in enum lin");

const struct hf_fused *hf_fused_at(int lin)
{
    for (size_t i = 0; i < ARRAY_LEN(fused); i++)
        if (fused[i].first == lin)
            return &fused[i];
    return NULL;
}

static int64_t rows_of(const struct hf_fused *u, const struct arch *a)
{
    int64_t n = 0;
    for (int l = u->first; l < u->first + u->n; l++)
        n += arch_out(a, l);
    return n;
}

/* New tensors are appended to those of f and become visible at the end. */
struct split {
    struct hf_files *f;
    const struct arch *a;
    const char *dir;
    int64_t n;      /* tensors, with the new ones */
    int64_t *whole; /* [n_whole] slots of the tensors that were split */
    int64_t n_whole;
    char *name; /* ROOM bytes for the next name */
};

static enum err find(const struct hf_place **out, const struct split *s,
                     const struct hf_fused *u, int64_t layer)
{
    char name[ROOM];
    const int64_t rows = rows_of(u, s->a), cols = arch_in(s->a, u->first);
    layer_tensor_name(name, sizeof(name), layer, u->module, ".weight");
    TRY(hf_files_need(out, s->f, name, s->dir, s->a));
    const struct st_tensor *t = (*out)->t;
    FAIL_IF(t->n_dims != 2 || t->dim[0] != rows || t->dim[1] != cols, ERR_FORMAT,
            "%s: tensor %s has %d dimensions and %" PRId64 " x %" PRId64
            " numbers, config.json wants [%" PRId64 ", %" PRId64 "] for %d projections",
            st_path(s->f->file[(*out)->file]), name, t->n_dims, t->n_dims ? t->dim[0] : 1,
            t->n_dims > 1 ? t->dim[1] : 1, rows, cols, u->n);
    return OK;
}

static enum err append(struct split *s, struct hf_place whole, int64_t layer, int l,
                       int64_t row)
{
    const size_t row_bytes = whole.t->bytes / (size_t)whole.t->dim[0];
    struct st_tensor *t = &s->f->tensor[s->n];
    layer_tensor_name(s->name, ROOM, layer, lin_module[l], ".weight");
    FAIL_IF(hf_files_find(s->f, s->name), ERR_FORMAT,
            "%s: tensor %s stands beside %s, which holds it too; delete the one that does "
            "not belong to the checkpoint",
            s->dir, s->name, whole.t->name);
    *t = *whole.t;
    t->name = s->name;
    t->dim[0] = arch_out(s->a, l);
    t->data = whole.t->data ? whole.t->data + (size_t)row * row_bytes : NULL; /* packed */
    t->bytes = (size_t)t->dim[0] * row_bytes;
    s->f->place[s->n++] = (struct hf_place){t, whole.file};
    s->name += ROOM;
    return OK;
}

static enum err split_tensor(struct split *s, const struct hf_fused *u, int64_t layer)
{
    const struct hf_place *whole;
    int64_t row = 0;
    TRY(find(&whole, s, u, layer));
    for (int l = u->first; l < u->first + u->n; l++) {
        TRY(append(s, *whole, layer, l, row));
        row += arch_out(s->a, l);
    }
    s->whole[s->n_whole++] = whole->t - s->f->tensor;
    return OK;
}

/* Makes room for `more` tensors. Tensors move, so places are made again. */
static enum err grow(struct hf_files *f, int64_t more)
{
    struct hf_files g = {0};
    const size_t room = (size_t)(f->n_places + more);
    enum err err = OK;
    TRY_OUT(mem_alloc(&g.tensor, room, sizeof(*g.tensor)));
    TRY_OUT(mem_alloc(&g.place, room, sizeof(*g.place)));
    TRY_OUT(mem_alloc(&g.by_name, room, sizeof(*g.by_name)));
    for (int64_t i = 0; i < f->n_places; i++) {
        g.tensor[i] = *f->place[i].t;
        g.place[i] = (struct hf_place){&g.tensor[i], f->place[i].file};
    }
    mem_free(f->tensor);
    mem_free(f->place);
    mem_free(f->by_name);
    f->tensor = g.tensor;
    f->place = g.place;
    f->by_name = g.by_name;
    hf_files_compact(f);
    return OK;
out:
    mem_free(g.tensor);
    mem_free(g.place);
    mem_free(g.by_name);
    return err;
}

static enum err split_all(struct split *s)
{
    struct hf_files *f = s->f;
    for (int64_t i = 0; i < s->a->n_layers; i++)
        for (size_t k = 0; k < ARRAY_LEN(fused); k++)
            TRY(split_tensor(s, &fused[k], i));
    for (int64_t i = 0; i < s->n_whole; i++)
        f->tensor[s->whole[i]].name = NULL;
    f->n_places = s->n;
    hf_files_compact(f);
    return OK;
}

enum err hf_split_fused(struct hf_files *f, const struct arch *a, const char *dir)
{
    struct split s = {.f = f, .a = a, .dir = dir, .n = f->n_places};
    const size_t layers = (size_t)a->n_layers;
    TRY(mem_alloc(&f->part_names, layers, PARTS * ROOM));
    TRY(grow(f, PARTS * a->n_layers));
    TRY(mem_alloc(&s.whole, layers * ARRAY_LEN(fused), sizeof(*s.whole)));
    s.name = f->part_names;
    const enum err err = split_all(&s);
    mem_free(s.whole);
    return err;
}

/* Splits what is packed in fused module u of a layer. */
static enum err split_packed(struct packed_parts *to, struct packed *p,
                             const struct arch *a, int64_t layer, const struct hf_fused *u)
{
    char whole[ROOM], name[N_LIN][ROOM];
    const char *part[N_LIN];
    int64_t rows[N_LIN];
    layer_tensor_name(whole, sizeof(whole), layer, u->module, ".weight");
    for (int k = 0; k < u->n; k++) {
        const int l = u->first + k;
        layer_tensor_name(name[k], sizeof(name[k]), layer, lin_module[l], ".weight");
        part[k] = name[k];
        rows[k] = arch_out(a, l);
    }
    return packed_split(to, p, whole, u->n, part, rows);
}

static enum err split_all_packed(struct packed_parts *to, struct packed *p,
                                 const struct arch *a)
{
    for (int64_t i = 0; i < a->n_layers; i++)
        for (size_t k = 0; k < ARRAY_LEN(fused); k++)
            TRY(split_packed(to, p, a, i, &fused[k]));
    return packed_replace(p, to);
}

enum err hf_split_packed(struct packed *p, const struct arch *a)
{
    struct packed_parts parts = {0};
    if (!p->n)
        return OK;
    TRY(mem_alloc(&parts.lin, (size_t)a->n_layers, PARTS * sizeof(*parts.lin)));
    const enum err err = split_all_packed(&parts, p, a);
    for (int64_t i = 0; err && i < parts.n; i++)
        mem_free(parts.lin[i].name);
    mem_free(parts.lin);
    return err;
}
