/* SPDX-License-Identifier: MIT
 *
 * Activation streams: one hidden state [T,D] per sample, in the act type. One stream holds
 * the input of the block in work in the quantized model, the others full-precision outputs.
 *
 * A stream is stored on the device, or on the host (in memory or mapped from a file). A
 * host stream passes through two slots on the device, so that the next sample arrives while
 * the current one is used:
 *
 *   host    [ 0 | 1 | 2 | 3 | ... ]
 *             |   |                     sample i uses slot i % 2
 *   device  [slot 0][slot 1] */
#ifndef WKVQ_STREAMS_H
#define WKVQ_STREAMS_H

#include "calib/calib.h"

/* One of the two device buffers of a host stream. */
struct stream_slot {
    struct tensor x; /* [T,D] act */
    void *
        locked; /* page-locked staging memory if data is not: asynchronous copies need it */
    int64_t loaded; /* the sample in `locked` that no copy has been queued for, -1: none */
    int64_t sample; /* in the slot, -1: none */
    bool arriving;  /* queued copy to the device that no operation waits for yet */
    bool leaving;   /* queued copy to the host */
};

struct stream {
    const struct calib_io *io;
    struct dev *dev;
    enum stream_place place;
    bool locked; /* data is page-locked memory from dev_host_alloc */
    void *data;  /* [samples][T][D] act */
    int64_t samples, T, D;
    enum dtype act;
    void *slots; /* device memory of both; NULL for a stream on the device */
    struct stream_slot slot[2];
};

/* *bytes = size of one stream. ERR_FORMAT if it does not fit a size_t. */
enum err stream_bytes(size_t *bytes, const struct arch *a, const struct calib_settings *s);
/* Returns where streams of `bytes` in all are stored. */
enum stream_place stream_place_of(const struct calib_settings *s, double bytes);
/* io, d and a are borrowed. Errors: ERR_MEMORY, ERR_DEVICE, those of io. Close in any
 * case. */
enum err stream_open(struct stream *st, const struct calib_io *io, struct dev *d,
                     const struct arch *a, const struct calib_settings *s, const char *name,
                     enum stream_place place);
void stream_close(struct stream *st); /* accepts a zeroed or half-built one */
/* Does the host's part of stream_prefetch(), where there is one. It waits for the copies that are
 * queued; so before the prefetch of several streams it is called for each of them, since a copy
 * that is queued waits for what is computed. */
enum err stream_load(struct stream *st, int64_t i);
/* Starts copying sample i to the device while it computes; nothing if there is no sample i.
 * Operations already queued may still use sample i - 2. */
enum err stream_prefetch(struct stream *st, int64_t i);
/* *x = view [T,D] act of sample i, valid until sample i + 2 or i - 2 is staged or
 * prefetched. */
enum err stream_stage(struct stream *st, struct tensor *x, int64_t i);
/* Copies sample i to x [T,D] act on the device. */
enum err stream_read(struct stream *st, const struct tensor *x, int64_t i);
/* Copies x [T,D] F32 to sample i. */
enum err stream_write(struct stream *st, int64_t i, const struct tensor *x);

#endif
