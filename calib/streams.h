/* SPDX-License-Identifier: MIT
 *
 * Activation streams: for every sample the hidden states at one point of the model, kept on
 * the host (in memory or mapped from a file) in the run's act type. One holds the quantized
 * model's input of the block in work; the others hold full-precision activations. */
#ifndef WKVQ_STREAMS_H
#define WKVQ_STREAMS_H

#include "calib/calib.h"

struct stream {
    const struct calib_io *io;
    struct dev *dev;
    void *data; /* [samples][T][D] act */
    int64_t samples, T, D;
    enum dtype act;
    struct tensor stage; /* [T,D] act on the device; borrowed */
};

/* Bytes of one stream. ERR_FORMAT when it does not fit a size_t. */
enum err stream_bytes(size_t *bytes, const struct arch *a, const struct calib_settings *s);
/* stage: [T,D] of the run's act type, on d, shared by all streams. */
enum err stream_open(struct stream *st, const struct calib_io *io, struct dev *d,
                     const struct arch *a, const struct calib_settings *s, const char *name,
                     bool on_disk, const struct tensor *stage);
void stream_close(struct stream *st); /* accepts a zeroed one */
/* x [T,D] F32 on the device = sample i. */
enum err stream_read(struct stream *st, const struct tensor *x, int64_t i);
/* The staged sample itself: *x [T,D] act, valid until the next call on any stream. */
enum err stream_stage(struct stream *st, struct tensor *x, int64_t i);
/* Sample i = x [T,D] F32. */
enum err stream_write(struct stream *st, int64_t i, const struct tensor *x);

#endif
