/* SPDX-License-Identifier: MIT */
#include "calib/refine/refine_priv.h"
#include "kernels/base/clock.h"
#include "kernels/base/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static size_t bytes_of(const struct tensor *x)
{
    return (size_t)tensor_count(x) * dtype_bytes(x->dtype);
}

enum {
    SAVED_STEP,
    SAVED_GUARD,
    SAVED_P,
    SAVED_M,
    SAVED_V,
    SAVED_BEST,
    SAVED_CODES, /* the last three only where codes learn */
    SAVED_OFFSETS,
    SAVED_BEST_CODES,
    N_SAVED
};
static const char *const saved_name[N_SAVED] = {
    "refine.step", "refine.guard", "refine.p",       "refine.m",         "refine.v",
    "refine.best", "refine.codes", "refine.offsets", "refine.best_codes"};

static int saved_count(const struct refine *r)
{
    return r->best_codes ? N_SAVED : SAVED_CODES;
}

/* The tensors on the device that are saved. */
static const struct tensor *saved_tensor(const struct refine *r, int i)
{
    const struct tensor *const all[] = {&r->st.p,    &r->st.m,     &r->st.v,
                                        &r->st.best, &r->st.codes, &r->st.offsets};
    return all[i - SAVED_P];
}

static enum err save_all(struct refine *r, struct named_tensor *t)
{
    int64_t position[] = {r->step, r->out->best_step};
    double loss[] = {r->out->start, r->out->best};
    t[SAVED_STEP].t = tensor_1d(position, DT_I64, 2);
    t[SAVED_GUARD].t = tensor_1d(loss, DT_I64, 2); /* the bits of two doubles */
    for (int i = SAVED_P; i < saved_count(r) && i < SAVED_BEST_CODES; i++) {
        const struct tensor *from = saved_tensor(r, i);
        TRY(mem_alloc(&t[i].t.data, bytes_of(from), 1));
        TRY(dev_download(r->dev, t[i].t.data, from->data, bytes_of(from)));
        t[i].t = tensor_1d(t[i].t.data, from->dtype, tensor_count(from));
    }
    if (r->best_codes)
        t[SAVED_BEST_CODES].t = tensor_1d(r->best_codes, DT_U8, r->st.codes.dim[0]);
    for (int i = 0; i < saved_count(r); i++)
        snprintf(t[i].name, sizeof(t[i].name), "%s", saved_name[i]);
    return r->io->save(r->io->ctx, t, saved_count(r));
}

enum err refine_save(struct refine *r)
{
    struct named_tensor *t = NULL;
    if (!r->io->save)
        return OK;
    TRY(mem_calloc(&t, N_SAVED, sizeof(*t)));
    const enum err err = save_all(r, t);
    for (int i = SAVED_P; i < SAVED_BEST_CODES; i++)
        mem_free(t[i].t.data);
    mem_free(t);
    r->saved = clock_s();
    return err;
}

static const struct tensor *find(const struct named_tensor *t, int n, int what,
                                 int64_t size, enum dtype type)
{
    for (int i = 0; i < n; i++)
        if (!strcmp(t[i].name, saved_name[what]) && t[i].t.dtype == type &&
            tensor_count(&t[i].t) == size)
            return &t[i].t;
    return NULL;
}

static enum err restore_tensor(struct refine *r, const struct named_tensor *t, int n,
                               int what)
{
    const struct tensor *to =
        what == SAVED_BEST_CODES ? &r->st.codes : saved_tensor(r, what);
    const struct tensor *x = find(t, n, what, tensor_count(to), to->dtype);
    FAIL_IF(!x, ERR_MISMATCH, "the saved refinement has no '%s' of this model's size",
            saved_name[what]);
    if (what == SAVED_BEST_CODES) {
        memcpy(r->best_codes, x->data, bytes_of(x));
        return OK;
    }
    return dev_upload(r->dev, to->data, x->data, bytes_of(x));
}

/* Returns the work of the finished steps, and of the looks at the guard that began them and lie
 * between them. One behind the last step is taken again. */
static double units_before(const struct refine *r)
{
    int64_t looks = 1;
    for (int64_t k = 1; k <= REFINE_LOOKS; k++)
        looks += r->step > r->steps * k / REFINE_LOOKS;
    return 4 * (double)(r->step * r->s->batch) + (double)(looks * r->s->guard);
}

enum err refine_restore(struct refine *r, bool *restored)
{
    const struct named_tensor *t = NULL;
    int n = 0;
    *restored = false;
    if (r->io->load)
        TRY(r->io->load(r->io->ctx, &t, &n));
    if (!n)
        return OK;
    const struct tensor *position = find(t, n, SAVED_STEP, 2, DT_I64);
    const struct tensor *loss = find(t, n, SAVED_GUARD, 2, DT_I64);
    FAIL_IF(!position || !loss, ERR_MISMATCH, "the saved refinement lacks its position");
    r->step = ((const int64_t *)position->data)[0];
    r->out->best_step = ((const int64_t *)position->data)[1];
    r->out->start = ((const double *)loss->data)[0];
    r->out->best = ((const double *)loss->data)[1];
    FAIL_IF(r->step < 0 || r->step > r->steps, ERR_MISMATCH,
            "the saved refinement is at step %" PRId64 " of %" PRId64, r->step, r->steps);
    for (int i = SAVED_P; i < saved_count(r); i++)
        TRY(restore_tensor(r, t, n, i));
    TRY(dev_sync(r->dev));
    r->units_done += units_before(r);
    *restored = true;
    return OK;
}
