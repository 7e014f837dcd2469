/* SPDX-License-Identifier: MIT
 *
 * What formats of packed codes share. */
#include "convert/export/hub.h"
#include "kernels/base/mem.h"

/* Returns torch_dtype. Engines convert scales to it, and bfloat16 holds 8 significant bits
 * of their 11. */
static const char *compute_type(const struct export_source *s)
{
    return s->arch->dtype == DT_BF16 && export_scale_bits(s) <= 8 ? "bfloat16" : "float16";
}

static enum err note_type(struct export_job *j, const char *type)
{
    if (j->source->arch->dtype != DT_BF16 || type[0] == 'b')
        return OK;
    return export_note(j, EXPORT_CHANGED,
                       "torch_dtype is float16, not the checkpoint's bfloat16, which would "
                       "round the scales");
}

static enum err plan(struct export_job *j, const struct hub_packing *how,
                     struct scheme *scheme)
{
    const struct export_source *s = j->source;
    const char *type = compute_type(s);
    struct hub_plan *p;
    json_t *q;
    TRY(hub_plan_new(&p, j));
    TRY(export_note(j, EXPORT_CARRIED, "Codes, scales and zero points, exactly"));
    TRY(schemes_find(scheme, j, how->most, how->one_group));
    if (how->note)
        TRY(how->note(j, scheme));
    TRY(note_type(j, type));
    TRY(hub_add_rest(p, s, DT_OTHER));
    for (int64_t i = 0; i < s->n_linears; i++)
        if (scheme[i].bits < 16)
            TRY(how->add(p, &s->linear[i], &scheme[i]));
    TRY(how->config(&q, s, scheme));
    return hub_finish(j, q, type);
}

enum err hub_check_packed(struct export_job *j, const struct hub_packing *how)
{
    struct scheme *scheme;
    FAIL_IF(!weight_quantizes(j->source->weights), ERR_SUPPORT,
            "weights.bits is 16: there is nothing to pack; use --format dense");
    TRY(mem_calloc(&scheme, (size_t)j->source->n_linears, sizeof(*scheme)));
    const enum err err = plan(j, how, scheme);
    mem_free(scheme);
    return err;
}
