/* SPDX-License-Identifier: MIT */
#include "convert/checkpoint/hf_experts.h"

#include "convert/checkpoint/packed/packed.h"
#include "convert/format/tensor_names.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define ROOM 128 /* bytes for a name */
#define N_KINDS 3
_Static_assert(LIN_UP == LIN_GATE + 1 && LIN_DOWN == LIN_GATE + 2,
               "the MLP's projections follow each other in enum lin");

/* How a family's configuration and tensors are named. */
struct mixture {
    enum arch_family family;
    int64_t n_experts, n_active, d_ff; /* transformers' defaults */
    const char *size;                  /* the field of an expert's d_ff */
    bool norm;                         /* whatever norm_topk_prob */
    const char *module;                /* of the experts, inside a layer */
    const char *lin[N_KINDS];          /* gate, up and down of an expert */
};

static const struct mixture mixtures[] = {
    {.family = ARCH_QWEN3_MOE,
     .n_experts = 128,
     .n_active = 8,
     .d_ff = 768,
     .size = "moe_intermediate_size",
     .module = "mlp.experts",
     .lin = {"gate_proj", "up_proj", "down_proj"}},
    {.family = ARCH_MIXTRAL,
     .n_experts = 8,
     .n_active = 2,
     .d_ff = 14336,
     .size = "intermediate_size",
     .norm = true,
     .module = "block_sparse_moe.experts",
     .lin = {"w1", "w3", "w2"}},
};

static const struct mixture *mixture_of(const struct arch *a)
{
    for (size_t i = 0; i < ARRAY_LEN(mixtures); i++)
        if (mixtures[i].family == a->family)
            return &mixtures[i];
    return NULL;
}

/* --- config.json -------------------------------------------------------------------- */

static enum err refuse_experts(const json_t *o, const char *where)
{
    static const char *const key[] = {"num_local_experts", "num_experts",
                                      "n_routed_experts", "moe_intermediate_size"};
    for (size_t i = 0; i < ARRAY_LEN(key); i++) {
        const json_int_t n = json_integer_value(json_object_get(o, key[i]));
        FAIL_IF(n > 1, ERR_SUPPORT,
                "%s: %s is %" JSON_INTEGER_FORMAT
                ": mixtures of experts are supported of qwen3_moe and mixtral only",
                where, key[i], n);
    }
    return OK;
}

/* Refuses layers with one MLP for all tokens among those with experts. */
static enum err refuse_dense_layers(const json_t *o, const char *where)
{
    int64_t step = 1;
    json_t *list = NULL;
    TRY(json_get_int(&step, o, "decoder_sparse_step", ANY_LO, ANY_HI, where));
    FAIL_IF(step != 1, ERR_SUPPORT,
            "%s: decoder_sparse_step is %" PRId64
            "; supported is 1, experts in every layer",
            where, step);
    TRY(json_get_array(&list, o, "mlp_only_layers", where));
    FAIL_IF(json_array_size(list) > 0, ERR_SUPPORT,
            "%s: mlp_only_layers has %zu layers; supported is none, experts in every layer",
            where, json_array_size(list));
    return OK;
}

enum err hf_read_experts(struct arch *a, const json_t *o, const char *where)
{
    const struct mixture *x = mixture_of(a);
    if (!x)
        return refuse_experts(o, where);
    TRY(refuse_dense_layers(o, where));
    a->norm_active = x->norm;
    const char *count =
        hf_is_given(o, "num_local_experts") ? "num_local_experts" : "num_experts";
    TRY(hf_read_size(&a->n_experts, o, count, x->n_experts, where));
    FAIL_IF(a->n_experts < 1, ERR_FORMAT, "%s: %s is %" PRId64 ", want at least 1", where,
            count, a->n_experts);
    TRY(hf_read_size(&a->n_active, o, "num_experts_per_tok", x->n_active, where));
    TRY(hf_read_size(&a->d_ff, o, x->size, x->d_ff, where));
    return x->norm ? OK : json_get_bool(&a->norm_active, o, "norm_topk_prob", where);
}

void hf_experts_module(char *out, size_t size, const struct arch *a, int64_t layer)
{
    layer_tensor_name(out, size, layer, mixture_of(a)->module, "");
}

void hf_expert_module(char *out, size_t size, const struct arch *a, int64_t layer, int lin,
                      int64_t expert)
{
    const struct mixture *x = mixture_of(a);
    char tail[64];
    snprintf(tail, sizeof(tail), ".%" PRId64 ".%s", expert, x->lin[lin - LIN_GATE]);
    layer_tensor_name(out, size, layer, x->module, tail);
}

/* --- tensors ------------------------------------------------------------------------ */

static void part_name(char out[ROOM + 8], const struct arch *a, int64_t layer, int kind,
                      int64_t e)
{
    char module[ROOM];
    hf_expert_module(module, sizeof(module), a, layer, LIN_GATE + kind, e);
    snprintf(out, ROOM + 8, "%s.weight", module);
}

enum err hf_need_experts(const struct hf_files *f, const struct arch *a, const char *dir)
{
    const struct hf_place *place;
    char name[ROOM + 8];
    if (a->n_layers * N_KINDS * a->n_experts <= f->n_places)
        return OK;
    for (int64_t i = 0; i < a->n_layers * N_KINDS; i++)
        for (int64_t e = 0; e < a->n_experts; e++) {
            part_name(name, a, i / N_KINDS, (int)(i % N_KINDS), e);
            TRY(hf_files_need(&place, f, name, dir, a));
        }
    return OK;
}

/* Joining, in two passes: names change only after the last one was looked up. */
struct join {
    struct hf_experts *x;
    struct hf_files *f;
    const struct arch *a;
    const char *dir;
    int64_t *slot; /* [layers][3][E] in f->tensor */
};

static int64_t at(const struct arch *a, int64_t layer, int kind, int64_t expert)
{
    return (layer * N_KINDS + kind) * a->n_experts + expert;
}

/* Checks an expert's tensor against config.json, and its type against that of expert 0. */
static enum err check_part(const struct join *j, const struct hf_part *p,
                           const struct hf_part *first, int kind)
{
    const int l = LIN_GATE + kind;
    const int64_t rows = arch_out(j->a, l) / j->a->n_experts, cols = arch_in(j->a, l);
    const char *where = st_path(j->f->file[p->file]);
    FAIL_IF(p->t.n_dims != 2 || p->t.dim[0] != rows || p->t.dim[1] != cols, ERR_FORMAT,
            "%s: tensor %s has %d dimensions and %" PRId64 " x %" PRId64
            " numbers, config.json wants [%" PRId64 ", %" PRId64 "]",
            where, p->t.name, p->t.n_dims, p->t.n_dims ? p->t.dim[0] : 1,
            p->t.n_dims > 1 ? p->t.dim[1] : 1, rows, cols);
    FAIL_IF(p->t.dtype != first->t.dtype, ERR_FORMAT,
            "%s: tensor %s has dtype %s, but expert 0 has %s", where, p->t.name,
            p->t.dtype_name, first->t.dtype_name);
    return OK;
}

static enum err find_part(struct join *j, int64_t layer, int kind, int64_t e)
{
    const int64_t i = at(j->a, layer, kind, e);
    struct hf_part *p = &j->x->from[i];
    const struct hf_place *place;
    char name[ROOM + 8];
    part_name(name, j->a, layer, kind, e);
    TRY(hf_files_need(&place, j->f, name, j->dir, j->a));
    j->slot[i] = place->t - j->f->tensor;
    *p = (struct hf_part){*place->t, place->file};
    j->x->data[i] = p->t.data;
    return check_part(j, p, &j->x->from[at(j->a, layer, kind, 0)], kind);
}

/* Writes the name of the tensor that stands for all experts of a layer. */
static void joined_name(char name[ROOM], const struct arch *a, int64_t layer, int kind)
{
    layer_tensor_name(name, ROOM, layer, arch_lin_module(a, LIN_GATE + kind), ".weight");
}

/* Refuses a stored tensor of that name: the one that is made would share it. */
static enum err check_name(const struct join *j, int64_t layer, int kind)
{
    char name[ROOM];
    joined_name(name, j->a, layer, kind);
    FAIL_IF(hf_files_find(j->f, name), ERR_FORMAT,
            "%s: tensor %s stands beside those of single experts; delete the one that does "
            "not belong to the checkpoint",
            j->dir, name);
    return OK;
}

/* Gives the tensor of expert 0 all rows and the name of them, and takes the others' names. */
static void join_kind(struct join *j, int64_t layer, int kind, char *name)
{
    const int64_t E = j->a->n_experts, i = at(j->a, layer, kind, 0);
    struct st_tensor *t = &j->f->tensor[j->slot[i]];
    joined_name(name, j->a, layer, kind);
    t->name = name;
    t->dim[0] *= E;
    t->bytes *= (size_t)E;
    t->data = NULL;
    for (int64_t e = 1; e < E; e++)
        j->f->tensor[j->slot[i + e]].name = NULL;
}

static enum err join_all(struct join *j)
{
    const struct arch *a = j->a;
    char *name = j->x->names;
    for (int64_t i = 0; i < a->n_layers * N_KINDS; i++)
        TRY(check_name(j, i / N_KINDS, (int)(i % N_KINDS)));
    for (int64_t layer = 0; layer < a->n_layers; layer++)
        for (int64_t i = 0; i < N_KINDS * a->n_experts; i++)
            TRY(find_part(j, layer, (int)(i / a->n_experts), i % a->n_experts));
    for (int64_t layer = 0; layer < a->n_layers; layer++)
        for (int kind = 0; kind < N_KINDS; kind++, name += ROOM)
            join_kind(j, layer, kind, name);
    hf_files_compact(j->f);
    return OK;
}

enum err hf_join_experts(struct hf_experts *x, struct hf_files *f, const struct arch *a,
                         const char *dir)
{
    enum err err = OK;
    struct join j = {.x = x, .f = f, .a = a, .dir = dir};
    const size_t layers = (size_t)a->n_layers;
    const size_t n = layers * N_KINDS * (size_t)a->n_experts;
    TRY_OUT(mem_calloc(&x->from, n, sizeof(*x->from)));
    TRY_OUT(mem_calloc(&x->data, n, sizeof(*x->data)));
    TRY_OUT(mem_calloc(&x->names, layers * N_KINDS, ROOM));
    TRY_OUT(mem_alloc(&j.slot, n, sizeof(*j.slot)));
    TRY_OUT(join_all(&j));
out:
    mem_free(j.slot);
    return err;
}

/* --- packed ------------------------------------------------------------------------- */

/* *packed = how many of the projections are packed. ERR_SUPPORT unless those have one format. */
static enum err check_alike(int64_t *packed, const struct packed *p, int64_t n,
                            const char *const *part)
{
    const struct packed_lin *first = NULL;
    *packed = 0;
    for (int64_t k = 0; k < n; k++) {
        const struct packed_lin *l = packed_find(p, part[k]);
        if (!l)
            continue;
        first = first ? first : l;
        (*packed)++;
        FAIL_IF(l->format.bits != first->format.bits ||
                    l->format.group_size != first->format.group_size || l->in != first->in,
                ERR_SUPPORT,
                "%s has %d bits in groups of %" PRId64 " and %" PRId64
                " columns, but %s has %d, %" PRId64 " and %" PRId64
                "; the experts of a layer must have one format",
                l->name, l->format.bits, l->format.group_size, l->in, first->name,
                first->format.bits, first->format.group_size, first->in);
    }
    return OK;
}

/* Projections that are joined, to take the places of their parts when all are. Until then p has
 * its order and all names, by which it is searched. */
struct joining {
    struct packed *p;
    struct packed_lin *lin; /* [n] */
    int64_t n;
};

/* Moves a projection to *to. Its place in p is marked. */
static void move(struct packed_lin *to, struct packed *p, const char *name)
{
    struct packed_lin *from = &p->lin[packed_find(p, name) - p->lin];
    *to = *from;
    from->rows = -1;
}

/* Drops the marked places and adds the joined projections, of which each has left at least one. */
static void replace_moved(struct joining *j)
{
    struct packed *p = j->p;
    int64_t n = 0;
    for (int64_t i = 0; i < p->n; i++)
        if (p->lin[i].rows >= 0)
            p->lin[n++] = p->lin[i];
    for (int64_t i = 0; i < j->n; i++)
        p->lin[n++] = j->lin[i];
    p->n = n;
    packed_sort(p);
}

/* Joins the n projections whose weights are named part[k] to one of all their rows, whose weight
 * is named `whole`. */
static enum err join_packed(struct joining *j, const char *whole, int64_t n,
                            const char *const *part)
{
    struct packed *p = j->p;
    struct packed_lin l = {.n_joined = n};
    int64_t packed;
    TRY(check_alike(&packed, p, n, part));
    if (!packed)
        return OK;
    FAIL_IF(packed < n, ERR_SUPPORT,
            "%s: %" PRId64 " of %" PRId64
            " experts are packed; pack all of them or none, in each of gate, up and down",
            whole, packed, n);
    TRY(mem_alloc(&l.joined, (size_t)n, sizeof(*l.joined)));
    const enum err err = mem_strdup(&l.name, whole);
    if (err) {
        mem_free(l.joined);
        return err;
    }
    for (int64_t k = 0; k < n; k++) {
        move(&l.joined[k], p, part[k]);
        l.rows += l.joined[k].rows;
    }
    l.layout = l.joined[0].layout;
    l.config = l.joined[0].config;
    l.format = l.joined[0].format;
    l.in = l.joined[0].in;
    l.out = l.rows;
    j->lin[j->n++] = l;
    return OK;
}

/* Joins gate, up or down (kind) of a layer. name [E][ROOM] and part [E] are working memory. */
static enum err join_packed_kind(struct joining *j, const struct arch *a, int64_t layer,
                                 int kind, char *name, const char **part)
{
    char whole[ROOM];
    for (int64_t e = 0; e < a->n_experts; e++) {
        char module[ROOM - 8];
        hf_expert_module(module, sizeof(module), a, layer, LIN_GATE + kind, e);
        snprintf(name + e * ROOM, ROOM, "%s.weight", module);
        part[e] = name + e * ROOM;
    }
    joined_name(whole, a, layer, kind);
    return join_packed(j, whole, a->n_experts, part);
}

enum err hf_join_packed(struct packed *p, const struct arch *a)
{
    enum err err = OK;
    char *name = NULL;
    const char **part = NULL;
    const size_t E = (size_t)a->n_experts;
    const int64_t kinds = a->n_layers * N_KINDS;
    struct joining j = {.p = p};
    if (!E)
        return OK;
    TRY_OUT(mem_alloc(&name, E, ROOM));
    TRY_OUT(mem_alloc(&part, E, sizeof(*part)));
    TRY_OUT(mem_alloc(&j.lin, (size_t)kinds, sizeof(*j.lin)));
    for (int64_t i = 0; i < kinds; i++)
        TRY_OUT(join_packed_kind(&j, a, i / N_KINDS, (int)(i % N_KINDS), name, part));
out:
    replace_moved(&j); /* also after a failure: each projection then has one owner */
    mem_free(j.lin);
    mem_free(name);
    mem_free(part);
    return err;
}

void hf_experts_close(struct hf_experts *x)
{
    mem_free(x->from);
    mem_free(x->data);
    mem_free(x->names);
    *x = (struct hf_experts){0};
}

void hf_experts_set(struct host_mat *m, const struct hf_experts *x, const struct arch *a,
                    int64_t layer, int lin)
{
    const int64_t stacked = arch_stacked(a, lin);
    if (!x->data || lin < LIN_GATE)
        return;
    m->data = NULL;
    m->part = x->data + at(a, layer, lin - LIN_GATE, 0);
    m->part_rows = m->rows / stacked;
}

void hf_experts_tell(const struct hf_experts *x, const struct hf_files *f,
                     const struct host_mat *m,
                     void (*tell)(const struct st_file *f, const struct st_tensor *t))
{
    const struct hf_part *from = x->from + (m->part - x->data);
    for (int64_t e = 0; e < m->rows / m->part_rows; e++)
        tell(f->file[from[e].file], &from[e].t);
}
