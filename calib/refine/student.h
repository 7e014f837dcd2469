/* SPDX-License-Identifier: MIT
 *
 * The whole quantized model on a device, with everything that refinement learns: packed
 * codes of all layers, one vector of parameters, and the weights of one layer at a time.
 *
 * A step takes a batch of windows, layer by layer, so that a layer's weights are made from its
 * codes once for all of them:
 *
 *   forward:   for each layer b       weights from codes
 *                for each window i    x(i, b + 1) = layer b(x(i, b))
 *   backward:  from the last layer to the first: weights from codes
 *                for each window i    forward again unless its activations were kept; backward;
 *                                     gradients of weights, and from them the scales'
 *              the sums of gradients over the windows, and the steps of the rounding
 *
 * Sums are taken in the order of the batch's windows, whatever process computed them, so each
 * process may have its own part of a batch. */
#ifndef WKVQ_STUDENT_H
#define WKVQ_STUDENT_H

#include "calib/batch/share.h"
#include "calib/model/block.h"
#include "calib/refine/refine.h"

/* One projection of one layer. Empty (codes.data NULL) where the weight is unquantized. */
struct student_lin {
    struct lin_format format;
    struct tensor codes;       /* U8 [out][in], or two a byte [out][ceil(in/2)] */
    struct tensor base, zeros; /* F16, U8 [out][groups]: h0 and z */
    struct tensor offset; /* F16 [out][in], see dev_code_step; data NULL: fixed codes */
    struct tensor u, du;  /* F32 [out][groups], views of p and g */
};

struct student_layer {
    struct student_lin lin[N_LIN];
    bool
        asks; /* a projection is unquantized: its weights come from the source every time */
    struct tensor router, bias[N_LIN]; /* [E,D] act, [out] F32; data NULL: there is none */
    struct kv_spec kv;
    float kv_scale[2]; /* as in struct block_kv */
    /* Gains by enum norm_gain; log s of K, V and shift of K, V [K*d]: views of p and g. data
     * NULL: the layer has none. */
    struct tensor norm[N_BLOCK_GAINS], dnorm[N_BLOCK_GAINS];
    struct tensor smooth[2], dsmooth[2], shift[2], dshift[2];
};

struct student {
    struct dev *dev;
    const struct arch *arch;
    const struct model_source *src;
    int scale_bits;
    struct share *share; /* borrowed: the windows of a batch */
    int64_t T, batch; /* tokens of a window; windows of a step in this process, at most */
    enum dtype act;
    bool learns_codes;
    float code_step;                   /* of the codes in the next backward pass; 0: none */
    struct student_layer *layer;       /* [n_layers] */
    struct tensor final_norm, dfinal;  /* [D], views of p and g */
    int64_t first[N_REFINE_KINDS + 1]; /* floats before each kind in p */
    struct tensor p, g, m, v, best;    /* [first[N_REFINE_KINDS]] */
    /* All codes and all offsets, as the layers view them: U8 [n], F16 [m]; offsets has data
     * NULL unless codes learn. */
    struct tensor codes, offsets;
    void *fixed, *params;       /* device memory of codes, of p.. */
    struct block_weights w, dw; /* act: of the layer in work; F32: its gradients */
    struct tensor scales;       /* F16, of the projection in work */
    struct block_acts acts;     /* of the layer and window in work, unless all are kept */
    struct block_acts *kept;    /* [batch][n_layers]; NULL: backward makes them again */
    struct block_scratch *scratch;
    struct tensor cos, sin;
    struct block_kv kv;
    void *memory;          /* of what follows */
    struct tensor *states; /* [batch][n_layers + 1] [T,D] F32 */
    struct tensor kv_s[2]; /* [K*d] s of K, V */
    /* F32 gradients of one window in the layer in work, or of the final norm: as many floats as the
     * layer that has most parameters. */
    struct tensor one;
    /* F32 gradients of weights, summed over the windows of a batch: dw itself where nothing needs
     * the sum, where a batch is one window, and where several processes put it together. */
    struct block_weights dw_sum;
};

/* Returns the device memory of one layer's weights, gradients and activations, and of the
 * states of a batch: the windows of this process. shared: there are others. */
size_t student_work_bytes(const struct arch *a, const struct refine_settings *s,
                          bool shared);

/* Returns the device memory of the activations of a whole batch. */
size_t student_acts_bytes(const struct arch *a, const struct refine_settings *s);

/* share: the batch of s, and this process's windows of it. */
enum err student_open(struct student *st, struct dev *d, const struct arch *a,
                      const struct model_source *src, const struct block_quant *layers,
                      const struct refine_settings *s, struct share *share);
void student_close(struct student *st); /* accepts a zeroed or half-built one */

/* States of n windows, at most a batch, from their tokens ids[n], host [T] each. */
enum err student_forward(struct student *st, const int32_t *const *ids, int64_t n);
/* Returns the state [T,D] F32 of window i after layer b - 1; b 0: its embedding. */
const struct tensor *student_state(const struct student *st, int64_t i, int64_t b);
/* g = the gradients of the batch, except for the final norm's, from dx[n], [T,D] F32, of the last
 * layer's output of this process's n windows of the last forward pass; dx is destroyed. If codes
 * learn, they move by code_step. */
enum err student_backward(struct student *st, const struct tensor *dx, int64_t n);

/* Adding up, part by part: a layer, or layer n_layers, which is the final norm. Views of the
 * gradients of one window, in st->one; data NULL: the part has none. */
struct student_grads {
    struct tensor du[N_LIN], dnorm[N_BLOCK_GAINS], dsmooth[2], dshift[2];
};
/* Returns the floats of the gradients of the largest part. */
int64_t student_gradients_most(const struct student *st);
/* Begins a window: its gradients are zero. */
enum err student_begin_window(struct student *st, struct student_grads *one, int64_t layer);
/* Ends window i of this process, and once all are ended leaves the sums over the batch in g and
 * dw_sum. */
enum err student_end_window(struct student *st, int64_t layer, int64_t i);
enum err student_sum_windows(struct student *st, int64_t layer);
/* Writes what p says into layers [n_layers]. Codes and gains are allocated where they are
 * missing. */
enum err student_export(struct student *st, struct block_quant *layers);

#endif
