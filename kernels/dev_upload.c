/* SPDX-License-Identifier: MIT
 *
 * Uploads with conversion. To a device with memory of its own, elements cross in 16 bits where
 * either side has no more, in pieces that take turns in two buffers on each side:
 *
 *   host_src -> locked[0] -> memory[0] -> y       a piece is read
 *            -> locked[1] -> memory[1] -> y       while the one before crosses
 *
 * The device converts a piece while the next one crosses. Types of 16 bits are not converted on the
 * host at all. Elements that keep their type arrive in y itself. */
#include "kernels/base/mem.h"
#include "kernels/dev_begin.h"

#include <string.h>

struct upload_stage {
    char *locked, *memory; /* DEV_UPLOAD_BYTES each: page-locked, and of the device */
    bool ordinary;         /* locked is not: page-locked memory was short */
    int turn;              /* the half that the next piece takes */
};

#define HALF (DEV_UPLOAD_BYTES / 2)

/* A copy from ordinary memory is right as well, but the host may wait for it. */
static enum err open_locked(struct dev *d, struct upload_stage *s)
{
    const enum err err = dev_host_alloc(d, (void **)&s->locked, DEV_UPLOAD_BYTES);
    if (err != ERR_MEMORY)
        return err;
    err_clear();
    s->ordinary = true;
    return mem_alloc(&s->locked, DEV_UPLOAD_BYTES, 1);
}

static enum err open_stage(struct dev *d)
{
    if (!d->stage)
        TRY(mem_calloc(&d->stage, 1, sizeof(*d->stage)));
    if (!d->stage->memory)
        TRY(dev_alloc(d, (void **)&d->stage->memory, DEV_UPLOAD_BYTES));
    return d->stage->locked ? OK : open_locked(d, d->stage);
}

void dev_close_stage(struct dev *d)
{
    if (!d->stage)
        return;
    dev_free(d, d->stage->memory); /* first: it waits for copies that are queued */
    if (d->stage->ordinary)
        mem_free(d->stage->locked);
    else
        dev_host_free(d, d->stage->locked);
    mem_free(d->stage);
    d->stage = NULL;
}

/* Elements that a thread converts at a time: enough that handing them out costs nothing. */
#define CONVERT_RUN (1 << 16)

struct conversion {
    char *dst;
    const char *src;
    enum dtype to, from;
    int64_t n;
};

static void convert_run(void *ctx, int64_t run, int thread)
{
    const struct conversion *j = ctx;
    const int64_t first = run * CONVERT_RUN;
    const int64_t n = j->n - first < CONVERT_RUN ? j->n - first : CONVERT_RUN;
    void *dst = j->dst + (size_t)first * dtype_bytes(j->to);
    const void *src = j->src + (size_t)first * dtype_bytes(j->from);
    if (j->to == DT_F32)
        host_to_f32(dst, src, j->from, n);
    else if (j->to == DT_BF16)
        host_to_bf16(dst, src, j->from, n);
    else
        memcpy(dst, src, (size_t)n * dtype_bytes(j->to));
}

/* On the device's threads, if it has some. */
static void convert(struct dev *d, void *dst, enum dtype to, const void *src,
                    enum dtype from, int64_t n)
{
    struct conversion j = {dst, src, to, from, n};
    pool_run(d->pool, (n + CONVERT_RUN - 1) / CONVERT_RUN, convert_run, &j);
}

static struct tensor elements(void *data, enum dtype t, int64_t first, int64_t n)
{
    return tensor_1d((char *)data + (size_t)first * dtype_bytes(t), t, n);
}

/* When a piece starts to cross, the host has seen the one before arrive. So it may fill that one's
 * half again, and the device may convert it. A copy starts after the operations queued before it,
 * so no conversion still reads the half that a piece arrives in. */
static void upload_in_pieces(struct dev *d, const struct tensor *y, const char *src,
                             enum dtype from)
{
    const enum dtype crosses = y->dtype == DT_BF16 && from == DT_F32 ? DT_BF16 : from;
    const bool keeps = y->dtype == from;
    const int64_t n = tensor_count(y), most = HALF / (int64_t)dtype_bytes(crosses);
    struct upload_stage *s = d->stage;
    struct tensor to, arrived;
    for (int64_t i = 0; i < n && !d->failed; i += most) {
        const int64_t m = n - i < most ? n - i : most;
        char *locked = s->locked + s->turn * HALF, *memory = s->memory + s->turn * HALF;
        if (keeps)
            memory = elements(y->data, from, i, m).data;
        convert(d, locked, crosses, src + (size_t)i * dtype_bytes(from), from, m);
        d->ops.copy_sync(d);
        d->ops.copy_in(d, memory, locked, (size_t)m * dtype_bytes(crosses));
        if (i && !keeps)
            d->ops.copy(d, &to, &arrived);
        to = elements(y->data, y->dtype, i, m);
        arrived = elements(memory, crosses, 0, m);
        s->turn = !s->turn;
    }
    if (d->failed)
        return;
    d->ops.copy_wait(d);
    if (!keeps)
        d->ops.copy(d, &to, &arrived);
}

enum err dev_upload_as(struct dev *d, const struct tensor *y, const void *host_src,
                       enum dtype from)
{
    OP_BEGIN(copy, started);
    WANT((is_act(y) || is_type(y, from)) && contiguous(y) && tensor_count(y) > 0,
         "upload_as: want a contiguous act tensor, or one of the source's type");
    WANT(from == DT_F32 || from == DT_F16 || from == DT_BF16,
         "upload_as: want F32, F16 or BF16 elements, not %s", dtype_name(from));
    if (!d->ops.memory) {
        convert(d, y->data, y->dtype, host_src, from, tensor_count(y));
    } else {
        TRY(open_stage(d));
        upload_in_pieces(d, y, host_src, from);
    }
    OP_END(DEV_COPY, started);
}

/* A device that computes in F32 in host memory gets them in place. */
enum err dev_upload_values(struct dev *d, const struct tensor *w, const struct qlinear *q)
{
    float *host = NULL;
    WANT(is_act(w) && is_matrix(w, w->dtype, q->out, q->in) && contiguous(w) && q->codes,
         "upload_values: want a contiguous act tensor [out,in], and codes");
    if (!d->ops.memory && w->dtype == DT_F32) {
        OP_BEGIN(copy, started);
        qlinear_values(w->data, q, d->pool);
        OP_END(DEV_COPY, started);
    }
    TRY(mem_alloc(&host, (size_t)tensor_count(w), sizeof(*host)));
    qlinear_values(host, q, d->pool);
    const enum err err = dev_upload_as(d, w, host, DT_F32);
    mem_free(host);
    return err;
}

/* Elements of 16 bits arrive in the upper half of host_dst: value i is written below every element
 * after i, so none is overwritten before it is read. */
enum err dev_download_f32(struct dev *d, float *host_dst, const struct tensor *x)
{
    FAIL_IF(d->failed, d->failed, "download_f32: device %s has already failed",
            d->ops.name);
    WANT((is_act(x) || is_type(x, DT_F16)) && contiguous(x) && tensor_count(x) > 0,
         "download_f32: want a contiguous tensor of F32, F16 or BF16");
    const int64_t n = tensor_count(x);
    const size_t bytes = (size_t)n * dtype_bytes(x->dtype);
    char *raw = (char *)host_dst + ((size_t)n * sizeof(*host_dst) - bytes);
    TRY(dev_download(d, raw, x->data, bytes));
    if (x->dtype != DT_F32)
        host_to_f32(host_dst, raw, x->dtype, n);
    return OK;
}
