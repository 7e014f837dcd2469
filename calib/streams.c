/* SPDX-License-Identifier: MIT */
#include "calib/streams.h"

#include "kernels/base/mem.h"

enum err stream_bytes(size_t *bytes, const struct arch *a, const struct calib_settings *s)
{
    const int64_t dims[] = {s->samples, s->seqlen, a->d_model};
    return size_product(bytes, dims, 3, dtype_bytes(s->act));
}

enum err stream_open(struct stream *st, const struct calib_io *io, struct dev *d,
                     const struct arch *a, const struct calib_settings *s, const char *name,
                     bool on_disk, const struct tensor *stage)
{
    size_t bytes;
    void *data = NULL;
    TRY(stream_bytes(&bytes, a, s));
    TRY(io->stream_open(io->ctx, name, bytes, on_disk, &data));
    *st = (struct stream){io, d, data, s->samples, s->seqlen, a->d_model, s->act, *stage};
    return OK;
}

void stream_close(struct stream *st)
{
    if (st->data)
        st->io->stream_close(st->io->ctx, st->data);
    *st = (struct stream){0};
}

static size_t sample_bytes(const struct stream *st)
{
    return (size_t)(st->T * st->D) * dtype_bytes(st->act);
}

static void *sample_at(const struct stream *st, int64_t i)
{
    return (char *)st->data + (size_t)i * sample_bytes(st);
}

enum err stream_stage(struct stream *st, struct tensor *x, int64_t i)
{
    TRY(dev_upload(st->dev, st->stage.data, sample_at(st, i), sample_bytes(st)));
    *x = st->stage;
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
    TRY(dev_copy(st->dev, &st->stage, x));
    return dev_download(st->dev, sample_at(st, i), st->stage.data, sample_bytes(st));
}
