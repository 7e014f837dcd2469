/* SPDX-License-Identifier: MIT */
#include "calib/streams.h"

#include "kernels/base/mem.h"

#include <string.h>

enum err stream_bytes(size_t *bytes, const struct arch *a, const struct calib_settings *s)
{
    const int64_t dims[] = {s->samples, s->seqlen, a->d_model};
    return size_product(bytes, dims, 3, dtype_bytes(s->act));
}

enum stream_place stream_place_of(const struct calib_settings *s, double bytes)
{
    if (bytes <= (double)s->device_bytes)
        return STREAM_DEVICE;
    return bytes <= (double)s->memory_bytes ? STREAM_MEMORY : STREAM_DISK;
}

static size_t sample_bytes(const struct stream *st)
{
    return (size_t)(st->T * st->D) * dtype_bytes(st->act);
}

/* --- opening ------------------------------------------------------------------------ */

static enum err open_data(struct stream *st, const char *name, size_t bytes, bool own)
{
    if (st->place == STREAM_DEVICE) {
        const enum err err = dev_alloc(st->dev, &st->data, bytes);
        return err ? err_add(err, "activations (lower run.device_memory and they stay on "
                                  "the host): ")
                   : OK;
    }
    /* If page-locked memory is short, ordinary memory serves, staged through the slots'. */
    if (st->place == STREAM_MEMORY && own) {
        const enum err err = dev_host_alloc(st->dev, &st->data, bytes);
        st->locked = !err;
        if (err != ERR_MEMORY)
            return err;
        err_clear();
    }
    return st->io->stream_open(st->io->ctx, name, bytes, st->place == STREAM_DISK,
                               &st->data);
}

static enum err open_slots(struct stream *st, bool own)
{
    TRY(dev_alloc(st->dev, &st->slots, 2 * sample_bytes(st)));
    for (int i = 0; i < 2; i++) {
        struct stream_slot *slot = &st->slot[i];
        slot->x = tensor_2d((char *)st->slots + (size_t)i * sample_bytes(st), st->act,
                            st->T, st->D);
        slot->sample = slot->loaded = -1;
        if (own && !st->locked)
            TRY(dev_host_alloc(st->dev, &slot->locked, sample_bytes(st)));
    }
    return OK;
}

enum err stream_open(struct stream *st, const struct calib_io *io, struct dev *d,
                     const struct arch *a, const struct calib_settings *s, const char *name,
                     enum stream_place place)
{
    size_t bytes;
    uint64_t free_bytes, total;
    const bool own = dev_memory(d, &free_bytes, &total);
    TRY(stream_bytes(&bytes, a, s));
    *st = (struct stream){.io = io,
                          .dev = d,
                          .place = place,
                          .samples = s->samples,
                          .T = s->seqlen,
                          .D = a->d_model,
                          .act = s->act};
    TRY(open_data(st, name, bytes, own));
    return place == STREAM_DEVICE ? OK : open_slots(st, own);
}

void stream_close(struct stream *st)
{
    if (!st->dev)
        return;
    dev_free(st->dev, st->slots); /* first: it waits for copies that are queued */
    for (int i = 0; i < 2; i++)
        dev_host_free(st->dev, st->slot[i].locked);
    if (st->place == STREAM_DEVICE)
        dev_free(st->dev, st->data);
    else if (st->locked)
        dev_host_free(st->dev, st->data);
    else if (st->data)
        st->io->stream_close(st->io->ctx, st->data);
    *st = (struct stream){0};
}

/* --- samples ------------------------------------------------------------------------ */

static void *sample_at(const struct stream *st, int64_t i)
{
    return (char *)st->data + (size_t)i * sample_bytes(st);
}

/* Copies sample i to page-locked memory, if its copy to the device begins there. */
static enum err load(struct stream *st, int64_t i)
{
    struct stream_slot *slot = &st->slot[i % 2];
    if (!slot->locked || slot->loaded == i)
        return OK;
    TRY(dev_copy_sync(st->dev)); /* its last copy may still read it */
    memcpy(slot->locked, sample_at(st, i), sample_bytes(st));
    slot->loaded = i;
    return OK;
}

/* Queues the copy of sample i into its slot. */
static enum err fetch(struct stream *st, int64_t i)
{
    struct stream_slot *slot = &st->slot[i % 2];
    TRY(load(st, i));
    const void *from = slot->locked ? slot->locked : sample_at(st, i);
    slot->loaded = -1; /* the next time its data may be others */
    slot->sample = -1;
    TRY(dev_copy_in(st->dev, slot->x.data, from, sample_bytes(st)));
    slot->sample = i;
    slot->arriving = true;
    slot->leaving = false; /* copies are done in order */
    return OK;
}

/* Returns whether sample i exists and has a slot that it is not in. */
static bool is_away(const struct stream *st, int64_t i)
{
    return st->place != STREAM_DEVICE && i < st->samples && st->slot[i % 2].sample != i;
}

enum err stream_load(struct stream *st, int64_t i)
{
    return is_away(st, i) ? load(st, i) : OK;
}

enum err stream_prefetch(struct stream *st, int64_t i)
{
    return is_away(st, i) ? fetch(st, i) : OK;
}

enum err stream_stage(struct stream *st, struct tensor *x, int64_t i)
{
    struct stream_slot *slot = &st->slot[i % 2];
    if (st->place == STREAM_DEVICE) {
        *x = tensor_2d(sample_at(st, i), st->act, st->T, st->D);
        return OK;
    }
    if (slot->sample != i)
        TRY(fetch(st, i));
    if (slot->arriving)
        TRY(dev_copy_wait(st->dev));
    slot->arriving = false;
    *x = slot->x;
    return OK;
}

enum err stream_read(struct stream *st, const struct tensor *x, int64_t i)
{
    struct tensor staged;
    TRY(stream_stage(st, &staged, i));
    return dev_copy(st->dev, x, &staged);
}

enum err stream_write(struct stream *st, int64_t i, const struct tensor *x)
{
    struct stream_slot *slot = &st->slot[i % 2];
    if (st->place == STREAM_DEVICE) {
        const struct tensor to = tensor_2d(sample_at(st, i), st->act, st->T, st->D);
        return dev_copy(st->dev, &to, x);
    }
    if (slot->arriving || slot->leaving)
        TRY(dev_copy_wait(st->dev));
    slot->arriving = slot->leaving = false;
    slot->sample = i;
    TRY(dev_copy(st->dev, &slot->x, x));
    if (!st->locked)
        return dev_download(st->dev, sample_at(st, i), slot->x.data, sample_bytes(st));
    slot->leaving = true;
    return dev_copy_out(st->dev, sample_at(st, i), slot->x.data, sample_bytes(st));
}
