/* SPDX-License-Identifier: MIT */
#include "convert/checkpoint/hf_rest.h"

#include "kernels/base/log.h"
#include "kernels/tensor/host_finite.h"

#include <inttypes.h>
#include <string.h>

/* Returns true for a tensor that is neither of the model nor needless as a copy. Needless are
 * frequencies that follow from config.json, and a tied head. */
static bool is_extra(const struct hf_rest *r, int64_t i)
{
    const char *name = r->files->by_name[i].t->name;
    return !r->taken[i] && !strstr(name, "rotary_emb.inv_freq") &&
           !(r->arch->tied && !strcmp(name, "lm_head.weight"));
}

void hf_rest_report(const struct hf_rest *r, const char *dir)
{
    const char *first = NULL;
    int64_t extra = 0;
    for (int64_t i = 0; i < r->files->n_places; i++) {
        if (!is_extra(r, i))
            continue;
        first = first ? first : r->files->by_name[i].t->name;
        extra++;
    }
    if (first)
        log_warn("%s: %" PRId64
                 " tensors are not part of a \"%s\" model: they are copied, and nothing is "
                 "computed with them; the first is %s",
                 dir, extra, r->arch->model_type, first);
}

static enum err check_tensor(const struct hf_rest *r, const struct hf_place *p)
{
    const struct st_tensor *t = p->t;
    const size_t unit = dtype_bytes(t->dtype);
    if (!t->data || !unit) /* projections of another tool have no values yet */
        return OK;
    const enum err err =
        host_check_finite(t->name, t->data, t->dtype, (int64_t)(t->bytes / unit), 1);
    st_release(r->files->file[p->file], t);
    return err;
}

enum err hf_rest_check(const struct hf_rest *r)
{
    for (int64_t i = 0; i < r->files->n_places; i++)
        if (is_extra(r, i))
            TRY(check_tensor(r, &r->files->by_name[i]));
    return OK;
}
