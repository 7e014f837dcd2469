/* SPDX-License-Identifier: MIT */
#include "convert/checkpoint/hf_given.h"

#include "convert/checkpoint/hf.h"
#include "convert/format/artifact_spec.h"
#include "kernels/base/mem.h"

#include <inttypes.h>

static enum err make_values(float **out, struct qlinear *q)
{
    const int64_t dim[] = {q->out, q->in};
    size_t bytes;
    TRY(size_product(&bytes, dim, 2, sizeof(**out)));
    TRY(mem_alloc(out, bytes, 1));
    qlinear_values(*out, q, NULL);
    mem_free(q->codes); /* they follow from the values and their scales */
    q->codes = NULL;
    return OK;
}

static enum err make_all(struct given_block *g, const struct block_src *b,
                         const struct packed *p)
{
    for (int l = 0; l < N_LIN; l++) {
        const struct packed_lin *from = packed_find(p, b->lin[l].name);
        if (!from)
            continue;
        TRY(packed_read(&g->lin[l], from));
        TRY(make_values(&g->values[l], &g->lin[l]));
    }
    g->made = true;
    return OK;
}

enum err given_block_make(struct given_block *g, struct block_src *b,
                          const struct packed *p)
{
    if (!g->made) {
        const enum err err = make_all(g, b, p);
        if (err) {
            given_block_free(g);
            return err;
        }
    }
    for (int l = 0; l < N_LIN; l++) {
        const struct qlinear *q = &g->lin[l];
        if (!g->values[l])
            continue;
        FAIL_IF(q->out != b->lin[l].rows || q->in != b->lin[l].cols, ERR_FORMAT,
                "tensor %s has [%" PRId64 ", %" PRId64 "], the model [%" PRId64 ", %" PRId64
                "]",
                b->lin[l].name, q->out, q->in, b->lin[l].rows, b->lin[l].cols);
        b->lin[l].data = g->values[l];
        b->given[l] = &g->lin[l];
    }
    return OK;
}

void given_block_free(struct given_block *g)
{
    for (int l = 0; l < N_LIN; l++) {
        qlinear_free(&g->lin[l]);
        mem_free(g->values[l]);
    }
    *g = (struct given_block){0};
}

/* --- what a checkpoint has ---------------------------------------------------------- */

/* Parts of one tensor share its bytes, which count with the first of them. */
static void add_lin(struct hf_packed *out, const struct packed_lin *l)
{
    out->n_linears++;
    out->weights += l->rows * l->in;
    for (int i = 0; i < N_PARTS && !l->first; i++)
        if (l->part[i].data)
            out->bytes += l->part[i].bytes;
}

void packed_describe(struct hf_packed *out, const struct packed *p)
{
    const struct packed_changes *c = &p->changes;
    *out = (struct hf_packed){.format = p->config.layout->about,
                              .groups = c->groups,
                              .symmetric = !c->off_centre,
                              .rounded = c->rounded,
                              .mirrored = c->mirrored,
                              .worst = c->worst};
    for (int64_t i = 0; i < p->n; i++) {
        const struct packed_lin *l = &p->lin[i];
        for (int64_t k = 0; k < l->n_joined; k++)
            add_lin(out, &l->joined[k]);
        if (!l->joined)
            add_lin(out, l);
    }
}

enum err hf_is_packed(bool *out, const char *model_dir)
{
    static const char *const key[] = {"quantization_config", "compression_config"};
    char *path = NULL;
    json_t *o = NULL;
    *out = false;
    TRY(file_join(&path, model_dir, "config.json"));
    const enum err err =
        json_load_file_lenient(&o, path, JSON_CONFIG_MAX, JSON_REPEATS_LAST);
    mem_free(path);
    TRY(err);
    for (size_t i = 0; i < ARRAY_LEN(key) && !*out; i++) {
        const json_t *q = json_object_get(o, key[i]);
        *out = json_is_object(q) && !spec_is_ours(q);
    }
    json_decref(o);
    return OK;
}
