/* SPDX-License-Identifier: MIT */
#include "tools/commands/inspect_tensors.h"

#include "kernels/base/mem.h"
#include "kernels/base/plural.h"
#include "kernels/tensor/quant.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Return tensor i, NULL beyond the last. */
typedef const struct st_tensor *tensor_fn(const struct hf_model *m, int64_t i);

static const struct st_tensor *read_at(const struct hf_model *m, int64_t i)
{
    return i < hf_tensor_count(m) ? hf_tensor_at(m, i) : NULL;
}

/* Returns true if tensors are split or joined while they are read. */
static bool reshapes(const struct arch *a)
{
    return a->fused || a->n_experts;
}

/* Packed weights are several tensors that are read as one. */
static tensor_fn *listed(const struct hf_model *m)
{
    struct hf_packed packed;
    return reshapes(hf_arch(m)) || hf_packed(&packed, m) ? hf_stored_at : read_at;
}

struct inspect_contents inspect_contents(const struct hf_model *m)
{
    struct inspect_contents c = {0};
    while (listed(m)(m, c.stored))
        c.stored++;
    for (const struct st_tensor *t; (t = read_at(m, c.read)); c.read++) {
        int64_t n = 1;
        for (int k = 0; k < t->n_dims; k++)
            n *= t->dim[k]; /* cannot fail: the reader checked it against the file's size */
        c.weights += n;
        c.bytes += t->bytes;
    }
    return c;
}

/* Writes "[512,64]" to out. */
static void shape_text(char out[200], const struct st_tensor *t)
{
    size_t n = 0;
    out[n++] = '[';
    for (int k = 0; k < t->n_dims && n < 170; k++)
        n += (size_t)sprintf(out + n, "%s%" PRId64, k ? "," : "", t->dim[k]);
    strcpy(out + n, "]");
}

static json_t *tensors_json(const struct hf_model *m, tensor_fn *at)
{
    json_t *list = json_object();
    const struct st_tensor *t;
    for (int64_t i = 0; (t = at(m, i)); i++) {
        json_t *shape = json_array();
        for (int k = 0; k < t->n_dims; k++)
            json_array_append_new(shape, json_integer(t->dim[k]));
        json_object_set_new(list, t->name,
                            json_pack("{s:s, s:o, s:I}", "dtype", t->dtype_name, "shape",
                                      shape, "bytes", (json_int_t)t->bytes));
    }
    return list;
}

static void print_tensors(const struct hf_model *m, tensor_fn *at)
{
    const struct st_tensor *t;
    for (int64_t i = 0; (t = at(m, i)); i++) {
        char shape[200];
        shape_text(shape, t);
        printf("  %-60s %-4s %-16s %12zu bytes\n", t->name, t->dtype_name, shape, t->bytes);
    }
}

void inspect_print_reading(const struct arch *a, const struct inspect_contents *c)
{
    if (reshapes(a))
        printf("  read as    %" PRId64 " tensors: %s\n", c->read,
               a->fused ? "the rows of qkv_proj and of gate_up_proj become q_proj, k_proj, "
                          "v_proj, gate_proj and up_proj"
                        : "gate_proj, up_proj and down_proj have the rows of all experts "
                          "of a layer");
}

void inspect_print_tensors(const struct hf_model *m)
{
    const struct arch *a = hf_arch(m);
    print_tensors(m, listed(m));
    if (reshapes(a)) {
        printf("  read as\n");
        print_tensors(m, read_at);
    }
}

bool inspect_add_tensors(json_t *o, const struct hf_model *m)
{
    const struct arch *a = hf_arch(m);
    return !json_object_set_new(o, "tensors", tensors_json(m, listed(m))) &&
           (!reshapes(a) ||
            !json_object_set_new(o, "tensors_read", tensors_json(m, read_at)));
}

/* --- formats ------------------------------------------------------------------------ */

#define MB 1e-6
#define RULES_MAX 80 /* characters of rules that need no summary */

/* Formats of one kind of projection, or of keys or values, over all layers. */
struct tally {
    int64_t of_bits[QUANT_BITS_NONE + 1]; /* number of layers */
    int64_t least, most; /* columns of a group; most 0: none is quantized */
    int64_t others;      /* layers that differ from the common format */
};

/* One more layer with `columns` columns, in groups of group_size or of whole rows. */
static void tally_add(struct tally *t, int bits, int64_t group_size, int64_t columns)
{
    const int64_t group = group_size && group_size < columns ? group_size : columns;
    t->of_bits[bits]++;
    if (bits == QUANT_BITS_NONE)
        return;
    t->least = !t->most || group < t->least ? group : t->least;
    t->most = group > t->most ? group : t->most;
}

static const char *kind_name(int lin)
{
    return strrchr(lin_module[lin], '.') + 1;
}

static struct tally tally_lin(const struct arch *a, const struct weight_spec *w, int lin)
{
    struct tally t = {0};
    for (int64_t i = 0; i < a->n_layers; i++) {
        const struct lin_format f = weight_format(w, i, lin);
        tally_add(&t, f.bits, f.group_size, arch_in(a, lin));
        t.others += f.bits != w->bits || f.group_size != w->group_size;
    }
    return t;
}

static struct tally tally_side(const struct arch *a, const struct kv_spec *kv,
                               enum kv_side side)
{
    struct tally t = {0};
    for (int64_t i = 0; i < a->n_layers; i++) {
        const struct kv_format f = kv_format(kv, i, side);
        tally_add(&t, f.bits, f.group_size, a->head_dim);
        t.others += f.bits != kv->bits || f.group_size != kv->group_size;
    }
    return t;
}

/* Prints one kind: its bits, with the share of its weights that have them. */
static void print_tally(const char *name, const struct tally *t, int64_t layers)
{
    const char *separator = "";
    printf("    %-10s ", name);
    for (int bits = 0; bits <= QUANT_BITS_NONE; bits++) {
        if (!t->of_bits[bits])
            continue;
        printf("%s%d bits %.0f %%", separator, bits,
               100 * (double)t->of_bits[bits] / (double)layers);
        separator = ", ";
    }
    if (t->most == t->least && t->most)
        printf("; groups of %" PRId64, t->most);
    else if (t->most)
        printf("; groups of %" PRId64 " to %" PRId64, t->least, t->most);
    putchar('\n');
}

static void print_group(const char *name, int64_t group, const char *whole)
{
    if (group)
        printf("%s%" PRId64, name, group);
    else
        printf("%s%s", name, whole);
}

/* Prints the rules of a mix, unless they are long. */
static enum err print_mix(bool *summary, const struct mix *m, bool rules)
{
    char *text;
    *summary = false;
    if (!m)
        return OK;
    TRY(mix_text(&text, m));
    *summary = !rules && strlen(text) > RULES_MAX;
    if (!*summary)
        printf(", mixed: %s", text);
    mem_free(text);
    return OK;
}

static void print_lins(const struct arch *a, const struct weight_spec *w)
{
    for (int l = 0; l < N_LIN; l++) {
        const struct tally t = tally_lin(a, w, l);
        print_tally(kind_name(l), &t, a->n_layers);
    }
    printf("    (-v prints the formats layer by layer)\n");
}

static void print_head(const struct weight_spec *w, const struct artifact_sizes *m)
{
    if (!weight_quantizes_head(w))
        return;
    printf("  head       %d bits", w->head_bits);
    print_group(", groups of ", w->head_group, "the whole row");
    printf(": %.4f bits per weight, %.1f MB with the embedding\n", m->head_bits,
           MB * (double)m->head_bytes);
}

enum err inspect_print_weights(const struct arch *a, const struct weight_spec *w,
                               const struct artifact_sizes *m, bool rules)
{
    bool summary;
    int64_t others = 0;
    printf("  weights    %d bits", w->bits);
    if (weight_quantizes(w))
        print_group(", groups of ", w->group_size, "the whole row");
    TRY(print_mix(&summary, w->mixed, rules));
    for (int l = 0; l < N_LIN && summary; l++)
        others += tally_lin(a, w, l).others;
    if (summary)
        printf(", other formats in %" PRId64 " of %" PRId64 " projections", others,
               a->n_layers * N_LIN);
    printf(": %.4f bits per weight, %.1f MB for %.1f M weights; everything else %.1f MB\n",
           m->weight_bits, MB * (double)m->quantized_bytes,
           1e-6 * (double)m->quantized_weights, MB * (double)m->other_bytes);
    if (summary)
        print_lins(a, w);
    print_head(w, m);
    return OK;
}

/* --- cache -------------------------------------------------------------------------- */

static void print_sides(const struct tally side[2], int64_t layers)
{
    print_tally("keys", &side[KV_K], layers);
    print_tally("values", &side[KV_V], layers);
    printf("    (-v prints the formats layer by layer)\n");
}

static void print_stage(const struct kv_spec *kv)
{
    printf(", keys %s the rotary embedding",
           kv->key_stage == KEY_PRE_ROPE ? "before" : "after");
    if (kv->rotate)
        printf(", %s rotated", kv->rotate == ROTATE_KV  ? "keys and values"
                               : kv->rotate == ROTATE_K ? "keys"
                                                        : "values");
}

/* Prints which tokens stay in full precision. */
static void print_kept(const struct kv_spec *kv)
{
    if (kv->target)
        printf("that of %s, simulated\n", kv_target_name[kv->target]);
    else if (kv->past_only)
        printf("full precision for the last %" PRId64 " token%s and the first %" PRId64
               "\n",
               kv->window, plural(kv->window), kv->sink);
    else
        printf("the current token is quantized too, the first %" PRId64 " are not\n",
               kv->sink);
}

enum err inspect_print_cache(const struct arch *a, const struct kv_spec *kv,
                             const struct artifact_sizes *m, bool rules)
{
    const struct tally side[] = {
        [KV_K] = tally_side(a, kv, KV_K), [KV_V] = tally_side(a, kv, KV_V)};
    bool summary = false;
    printf("  cache      %d bits", kv->bits);
    if (kv_quantizes(kv)) {
        if (kv_target_has_scales(kv->target))
            printf(", a scale for keys and one for values");
        else
            print_group(", groups of ", kv->group_size, "the whole head");
        TRY(print_mix(&summary, kv->mixed, rules));
        if (summary)
            printf(", other formats for keys or values %" PRId64 " of %" PRId64 " times",
                   side[KV_K].others + side[KV_V].others, 2 * a->n_layers);
        print_stage(kv);
    }
    printf(": %.4f bits per element; ", m->kv_bits);
    print_kept(kv);
    if (summary)
        print_sides(side, a->n_layers);
    return OK;
}

/* --- another tool's checkpoint ------------------------------------------------------ */

/* Makes "0.q_proj, 3-5.down_proj": the projections that are not quantized. *out is owned. */
static enum err unquantized_text(char **out, const struct arch *a,
                                 const struct weight_spec *w)
{
    struct mix *m;
    enum err err = OK;
    TRY(mix_new(&m, MIX_WEIGHTS));
    for (int l = 0; l < N_LIN && !err; l++)
        for (int64_t i = 0; i < a->n_layers && !err; i++)
            if (weight_format(w, i, l).bits == QUANT_BITS_NONE)
                err =
                    mix_set(m, i, i, l, (struct mix_format){QUANT_BITS_NONE, MIX_NO_GROUP});
    if (!err)
        err = mix_text(out, m);
    mix_free(m);
    for (char *p = err ? NULL : strstr(*out, "=16"); p; p = strstr(p, "=16"))
        memmove(p, p + 3, strlen(p + 3) + 1);
    return err;
}

enum err inspect_print_packed(const struct arch *a, const struct inspect_packed *p,
                              bool rules)
{
    const struct hf_packed *f = &p->found;
    char *full;
    printf("  format     %s, %s\n", f->format, f->symmetric ? "symmetric" : "asymmetric");
    TRY(inspect_print_weights(a, &p->weights, &p->sizes, rules));
    TRY(unquantized_text(&full, a, &p->weights));
    if (*full)
        printf("  16 bits    embedding, head, norms and %s\n", full);
    else
        printf("  16 bits    embedding, head and norms, but no projection\n");
    mem_free(full);
    return OK;
}

enum err inspect_packed_json(json_t **out, const struct arch *a,
                             const struct inspect_packed *p)
{
    const struct hf_packed *f = &p->found;
    const struct weight_spec *w = &p->weights;
    char *full = NULL, *mixed = NULL;
    enum err err = unquantized_text(&full, a, w);
    if (!err)
        err = mix_text(&mixed, w->mixed);
    *out = err ? NULL
               : json_pack("{s:s, s:i, s:I, s:s, s:I, s:b, s:s}", "format", f->format,
                           "bits", w->bits, "group_size", (json_int_t)w->group_size,
                           "mixed", mixed, "projections", (json_int_t)f->n_linears,
                           "symmetric", (int)f->symmetric, "unquantized", full);
    mem_free(full);
    mem_free(mixed);
    TRY(err);
    FAIL_IF(!*out, ERR_MEMORY, "out of memory for the report");
    return OK;
}
