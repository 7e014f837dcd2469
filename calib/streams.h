/* SPDX-License-Identifier: MIT
 *
 * Activation streams: for every sample the hidden states at one point of the model, in the
 * run's act type. One holds the quantized model's input of the block in work; the others
 * hold full-precision activations. They live on the device, or on the host (in memory, or
 * mapped from a file) and then pass through two slots on the device, so that the next
 * sample arrives while one is computed with. */
#ifndef WKVQ_STREAMS_H
#define WKVQ_STREAMS_H

#include "calib/calib.h"

/* Where sample i of a stream is on the device: slot i % 2. */
struct stream_slot {
    struct tensor x; /* [T,D] act */
    void *locked;    /* page-locked, where data is not: copies beside compute want it */
    int64_t sample;  /* -1: none */
    bool arriving;   /* operations have not been told to wait for it */
    bool leaving;    /* its copy to the host is queued */
};

struct stream {
    const struct calib_io *io;
    struct dev *dev;
    enum stream_place place;
    bool locked; /* data is page-locked memory of the device's making */
    void *data;  /* [samples][T][D] act */
    int64_t samples, T, D;
    enum dtype act;
    void *slots; /* device memory of both; NULL for a stream on the device */
    struct stream_slot slot[2];
};

/* Bytes of one stream. ERR_FORMAT when it does not fit a size_t. */
enum err stream_bytes(size_t *bytes, const struct arch *a, const struct calib_settings *s);
/* Where streams of so many bytes together go. */
enum stream_place stream_place_of(const struct calib_settings *s, double bytes);
enum err stream_open(struct stream *st, const struct calib_io *io, struct dev *d,
                     const struct arch *a, const struct calib_settings *s, const char *name,
                     enum stream_place place);
void stream_close(struct stream *st); /* accepts a zeroed or half-built one */
/* Sample i will be wanted next: let it come while the device computes. Nothing when there
 * is no sample i. What has been queued may use the sample before last. */
enum err stream_prefetch(struct stream *st, int64_t i);
/* *x [T,D] act = sample i, valid until sample i + 2 or i - 2 is asked for or prefetched. */
enum err stream_stage(struct stream *st, struct tensor *x, int64_t i);
/* x [T,D] F32 on the device = sample i. */
enum err stream_read(struct stream *st, const struct tensor *x, int64_t i);
/* Sample i = x [T,D] F32. */
enum err stream_write(struct stream *st, int64_t i, const struct tensor *x);

#endif
