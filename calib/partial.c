/* SPDX-License-Identifier: MIT
 *
 * Saves and restores the block in work as named host tensors: parameters, moments, the best
 * so far, start values that do not learn, and the position in training. Losses are stored as
 * the bits of their doubles. */
#include "calib/calibration.h"
#include "calib/cost.h"

#include "kernels/base/clock.h"
#include "kernels/base/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { POS_VERSION, POS_MEASURED, POS_EPOCH, POS_STEP, POS_BEST, POS_EPOCHS, N_POS };
/* From LOSS_EPOCHS on one loss per epoch. Seconds are those of all runs so far. */
enum { LOSS_START, LOSS_BEST, LOSS_SECONDS, LOSS_GEMM_SECONDS, LOSS_EPOCHS };

#define PARTIAL_VERSION 3 /* a block saved by an earlier version begins again */
#define N_LOSSES (LOSS_EPOCHS + (int)ARRAY_LEN(((struct calib_block_stats *)0)->epoch_loss))
#define N_VECTORS 4
#define N_CACHE 4
#define N_TENSORS (N_VECTORS + 2 * N_LIN + N_CACHE + 3)

/* By enum kv_side: the scales of a cache that has one for a whole tensor. */
#define N_SCALES ((int64_t)ARRAY_LEN(((struct block_kv *)0)->scale))

static const char *const vector_name[N_VECTORS] = {"p", "m", "v", "best"};

static const char *const cache_name[N_CACHE] = {"k_ls", "v_ls", "k_shift", "v_shift"};

static void name_tensor(struct named_tensor *t, const char *name, struct tensor x)
{
    snprintf(t->name, sizeof(t->name), "%s", name);
    t->t = x;
}

static void pack_position(const struct block_position *at, int64_t *pos, int64_t *loss)
{
    const struct calib_block_stats *s = &at->stats;
    pos[POS_VERSION] = PARTIAL_VERSION;
    pos[POS_MEASURED] = at->measured;
    pos[POS_EPOCH] = at->epoch;
    pos[POS_STEP] = at->step;
    pos[POS_BEST] = s->best_epoch;
    pos[POS_EPOCHS] = s->n_epochs;
    memcpy(&loss[LOSS_START], &s->start_loss, sizeof(double));
    memcpy(&loss[LOSS_BEST], &s->best_loss, sizeof(double));
    memcpy(&loss[LOSS_SECONDS], &s->seconds, sizeof(double));
    memcpy(&loss[LOSS_GEMM_SECONDS], &s->seconds_gemm, sizeof(double));
    memcpy(&loss[LOSS_EPOCHS], s->epoch_loss, sizeof(s->epoch_loss));
}

/* Lists the device tensors to save: the vectors, the offsets of learned rounding, and a cache's
 * smoothing and shift that do not learn and so are not among the vectors. Returns how many there
 * are. */
static int list_device(struct named_tensor *t, const struct fakequant *f)
{
    const struct tensor *const vector[N_VECTORS] = {&f->p, &f->m, &f->v, &f->best};
    int n = 0;
    for (int i = 0; i < N_VECTORS && f->n; i++)
        name_tensor(&t[n++], vector_name[i], *vector[i]);
    for (int i = 0; i < 2 * N_LIN && f->learn_round; i++) {
        const int l = i / 2;
        name_tensor(&t[n], i % 2 ? "round_best." : "round.",
                    fakequant_offsets(f, l, i % 2));
        strcat(t[n++].name, lin_name[l]);
    }
    const struct tensor fixed[N_CACHE] = {f->k_ls, f->v_ls, f->kv.k_shift, f->kv.v_shift};
    for (int i = 0; i < N_CACHE && f->quantize_kv && !f->learn_kv; i++)
        name_tensor(&t[n++], cache_name[i], fixed[i]);
    return n;
}

/* Counts the values of list_device(): a group's two parameters and a channel's four are in each
 * vector if they learn. */
static uint64_t count_device(const struct arch *a, const struct calib_settings *s,
                             int64_t block)
{
    const struct weight_spec *w = &s->weights;
    const bool round = weight_quantizes(w) && w->round == ROUND_LEARNED;
    const uint64_t channels =
        kv_quantizes(&s->kv) ? 4 * (uint64_t)(a->n_kv * a->head_dim) : 0;
    uint64_t n = calib_learns_kv(s) ? N_VECTORS * channels : channels;
    for (int l = 0; l < N_LIN; l++) {
        const struct lin_format f = weight_format(w, block, l);
        const uint64_t out = (uint64_t)arch_out(a, l), in = (uint64_t)arch_in(a, l);
        if (calib_clips(s) && f.bits < 16)
            n += N_VECTORS * 2 * out * (uint64_t)weight_groups((int64_t)in, f.group_size);
        if (round)
            n += 2 * out * in;
    }
    return n;
}

uint64_t calib_partial_bytes(const struct arch *a, const struct calib_settings *s,
                             int64_t block)
{
    return sizeof(float) * (count_device(a, s, block) + (uint64_t)N_SCALES) +
           sizeof(int64_t) * (uint64_t)(N_POS + N_LOSSES);
}

/* Copies tensors of a device with its own memory to the host, in one allocation. */
static enum err copy_to_host(float **out, struct dev *d, struct named_tensor *t, int n)
{
    size_t count = 0;
    for (int i = 0; i < n; i++)
        count += (size_t)tensor_count(&t[i].t);
    TRY(mem_alloc(out, count, sizeof(**out)));
    float *to = *out;
    for (int i = 0; i < n; i++) {
        const int64_t floats = tensor_count(&t[i].t);
        TRY(dev_download(d, to, t[i].t.data, (size_t)floats * sizeof(*to)));
        t[i].t.data = to;
        to += floats;
    }
    return OK;
}

enum err calib_save_partial(struct calibration *c)
{
    struct named_tensor t[N_TENSORS];
    int64_t pos[N_POS], loss[N_LOSSES];
    int n = list_device(t, &c->fq);
    float *host = NULL;
    enum err err = OK;
    if (!dev_host_threads(c->dev)) /* else the device's memory is the host's */
        TRY_OUT(copy_to_host(&host, c->dev, t, n));
    calib_take_time(c);
    pack_position(&c->at, pos, loss);
    name_tensor(&t[n++], "position", tensor_1d(pos, DT_I64, N_POS));
    name_tensor(&t[n++], "losses", tensor_1d(loss, DT_I64, N_LOSSES));
    name_tensor(&t[n++], "kv_scale", tensor_1d(c->fq.kv.scale, DT_F32, N_SCALES));
    err = c->io->save_partial(c->io->ctx, c->block, t, n);
    c->saved = clock_s();
out:
    mem_free(host);
    return err;
}

static enum err find(const struct tensor **out, const struct named_tensor *t, int n,
                     const char *name, enum dtype type, int64_t count)
{
    for (int i = 0; i < n; i++) {
        if (strcmp(t[i].name, name))
            continue;
        FAIL_IF(t[i].t.dtype != type || tensor_count(&t[i].t) != count, ERR_FORMAT,
                "saved block: %s has %" PRId64 " values of type %s, want %" PRId64 " of %s",
                name, tensor_count(&t[i].t), dtype_name(t[i].t.dtype), count,
                dtype_name(type));
        *out = &t[i].t;
        return OK;
    }
    FAIL(ERR_FORMAT, "saved block: %s is missing", name);
}

static enum err unpack_position(struct block_position *at, const struct calib_settings *s,
                                const int64_t *pos, const int64_t *loss)
{
    struct calib_block_stats *st = &at->stats;
    FAIL_IF(pos[POS_VERSION] != PARTIAL_VERSION || pos[POS_EPOCH] < 0 ||
                pos[POS_EPOCH] > s->epochs || pos[POS_STEP] < 0 ||
                pos[POS_STEP] > calib_epoch_steps(s) || pos[POS_EPOCHS] != pos[POS_EPOCH] ||
                pos[POS_BEST] < 0 || pos[POS_BEST] > pos[POS_EPOCHS],
            ERR_FORMAT, "saved block: its position in training makes no sense");
    at->measured = pos[POS_MEASURED] != 0;
    at->epoch = pos[POS_EPOCH];
    at->step = pos[POS_STEP];
    st->best_epoch = pos[POS_BEST];
    st->n_epochs = pos[POS_EPOCHS];
    memcpy(&st->start_loss, &loss[LOSS_START], sizeof(double));
    memcpy(&st->best_loss, &loss[LOSS_BEST], sizeof(double));
    memcpy(&st->seconds, &loss[LOSS_SECONDS], sizeof(double));
    memcpy(&st->seconds_gemm, &loss[LOSS_GEMM_SECONDS], sizeof(double));
    memcpy(st->epoch_loss, &loss[LOSS_EPOCHS], sizeof(st->epoch_loss));
    return OK;
}

enum err calib_load_partial(struct calibration *c, bool *restored)
{
    struct named_tensor want[N_TENSORS];
    const struct named_tensor *t;
    const struct tensor *x, *pos, *loss, *scale;
    int n = 0;
    *restored = false;
    TRY(c->io->load_partial(c->io->ctx, c->block, &t, &n));
    if (!n)
        return OK;
    TRY(find(&pos, t, n, "position", DT_I64, N_POS));
    if (((const int64_t *)pos->data)[POS_VERSION] < PARTIAL_VERSION)
        return OK;
    TRY(find(&loss, t, n, "losses", DT_I64, N_LOSSES));
    TRY(find(&scale, t, n, "kv_scale", DT_F32, N_SCALES));
    TRY(unpack_position(&c->at, c->s, pos->data, loss->data));
    memcpy(c->fq.kv.scale, scale->data, sizeof(c->fq.kv.scale));
    const int n_want = list_device(want, &c->fq);
    for (int i = 0; i < n_want; i++) {
        const int64_t count = tensor_count(&want[i].t);
        TRY(find(&x, t, n, want[i].name, DT_F32, count));
        TRY(dev_upload(c->dev, want[i].t.data, x->data, (size_t)count * sizeof(float)));
    }
    *restored = true;
    TRY(dev_sync(c->dev));
    if (c->io->drop_partial)
        c->io->drop_partial(c->io->ctx);
    return OK;
}
