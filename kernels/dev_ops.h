/* SPDX-License-Identifier: MIT
 *
 * The table that an implementation fills. Private to kernels/.
 *
 * dev_*() checks shapes, types and aliasing before it calls an entry, so an entry trusts
 * its arguments and cannot refuse them. Only memory or the device itself can still fail;
 * the entry then calls dev_fail(), and all later operations return that error.
 *
 * The cpu table starts as a copy of ref's and replaces one operation after another. A table
 * for another memory space leaves NULL what it lacks, and dev_*() returns ERR_DEVICE. */
#ifndef WKVQ_DEV_OPS_H
#define WKVQ_DEV_OPS_H

#include "kernels/base/pool.h"
#include "kernels/dev.h"

struct attn_shape;
struct engine_quant;
struct ranks;
struct upload_stage; /* dev_upload.c */

struct dev_ops {
    const char *name;
    void (*close)(struct dev *d); /* releases d->priv; may be NULL */
    void *(*alloc)(struct dev *d, size_t bytes);
    void (*free)(struct dev *d, void *p);
    void (*upload)(struct dev *d, void *dst, const void *src, size_t bytes);
    void (*download)(struct dev *d, void *dst, const void *src, size_t bytes);
    void (*zero)(struct dev *d, void *dst, size_t bytes);
    void (*sync)(struct dev *d);
    /* kernels/dev_step.h; NULL: work is called each time. Returns the error of work, or
     * d->failed. */
    enum err (*repeat)(struct dev *d, int64_t key, enum err (*work)(void *ctx), void *ctx);
    void (*forget)(struct dev *d);
    /* NULL if the device works in host memory. */
    bool (*memory)(struct dev *d, uint64_t *free, uint64_t *total);
    void (*put)(struct dev *d, void *dst, const void *src, size_t bytes);
    void (*copy_in)(struct dev *d, void *dst, const void *src, size_t bytes);
    void (*copy_out)(struct dev *d, void *dst, const void *src, size_t bytes);
    void (*copy_wait)(struct dev *d);
    void (*copy_sync)(struct dev *d);
    void *(*host_alloc)(struct dev *d, size_t bytes);
    void (*host_free)(struct dev *d, void *p);
    /* kernels/dev_link.h; NULL if the device works in host memory. about holds DEV_LINK_TEXT
     * bytes. */
    bool (*link)(struct dev *d, const struct ranks *r, char *about);
    void (*unlink)(struct dev *d);
    void (*transfer)(struct dev *d, float *const *to, const int64_t *to_n,
                     const float *const *from, const int64_t *from_n);
    void (*copy)(struct dev *d, const struct tensor *y, const struct tensor *x);
    void (*gemm)(struct dev *d, enum gemm_kind kind, const struct tensor *c,
                 const struct tensor *a, const struct tensor *b, bool accumulate);
    /* NULL: dev_gemm_add() calls gemm and add. */
    void (*gemm_add)(struct dev *d, enum gemm_kind kind, const struct tensor *y,
                     const struct tensor *x, const struct tensor *a, const struct tensor *b,
                     const struct tensor *part);
    void (*bias)(struct dev *d, const struct tensor *y, const struct tensor *b);
    void (*rmsnorm)(struct dev *d, const struct tensor *y, const struct tensor *s,
                    const struct tensor *h, const struct rmsnorm_inputs *in);
    void (*rmsnorm_bwd)(struct dev *d, const struct rmsnorm_grads *grads,
                        const struct tensor *dy, const struct tensor *x,
                        const struct tensor *s, const struct tensor *g);
    void (*add)(struct dev *d, const struct tensor *y, const struct tensor *a,
                const struct tensor *b);
    void (*scale)(struct dev *d, const struct tensor *y, float factor);
    void (*rope)(struct dev *d, const struct tensor *x, const struct tensor *cos,
                 const struct tensor *sin, bool inverse);
    void (*hadamard)(struct dev *d, const struct tensor *x);
    void (*attn)(struct dev *d, const struct tensor *o, const struct tensor *lse,
                 const struct attn_inputs *in);
    void (*attn_bwd)(struct dev *d, const struct attn_grads *grads,
                     const struct tensor *dout, const struct tensor *o,
                     const struct tensor *lse, const struct attn_inputs *in);
    /* What the two entries before allocate with that many threads; set by the cpu device only. */
    int64_t (*attn_bytes)(const struct attn_shape *s, int threads);
    void (*gate)(struct dev *d, enum gate_act act, const struct tensor *y,
                 const struct tensor *gu);
    void (*gate_bwd)(struct dev *d, enum gate_act act, const struct tensor *dgu,
                     const struct tensor *dy, const struct tensor *gu);
    void (*fake_quant_weights)(struct dev *d, const struct tensor *wq,
                               const struct tensor *scales, const struct tensor *zeros,
                               const struct weight_quant *p);
    void (*fake_quant_stored)(struct dev *d, const struct tensor *wq,
                              const struct tensor *scales, const struct tensor *zeros,
                              const struct weight_quant *p);
    void (*fake_quant_weights_bwd)(struct dev *d, const struct tensor *da,
                                   const struct tensor *db, const struct tensor *dwq,
                                   const struct weight_quant *p);
    void (*offset_step)(struct dev *d, const struct tensor *dwq,
                        const struct tensor *scales, const struct tensor *zeros,
                        const struct weight_quant *p, float rate);
    void (*fake_quant_kv)(struct dev *d, const struct tensor *xq, const struct kv_quant *p);
    void (*fake_quant_kv_bwd)(struct dev *d, const struct kv_grads *grads,
                              const struct tensor *dxq, const struct kv_quant *p);
    void (*fake_quant_kv_channel)(struct dev *d, const struct tensor *xq,
                                  const struct tensor *x, int bits, int64_t tokens);
    void (*fake_quant_kv_channel_bwd)(struct dev *d, const struct tensor *dx,
                                      const struct tensor *dxq, const struct tensor *x,
                                      int bits, int64_t tokens, bool accumulate);
    /* kernels/dev_engine.h */
    void (*fake_quant_engine)(struct dev *d, const struct tensor *xq,
                              const struct engine_quant *p);
    void (*fake_quant_engine_bwd)(struct dev *d, const struct kv_grads *grads,
                                  const struct tensor *dxq, const struct engine_quant *p);
    void (*col_minmax)(struct dev *d, const struct tensor *mn, const struct tensor *mx,
                       const struct tensor *x);
    void (*exp)(struct dev *d, const struct tensor *s, const struct tensor *ls);
    double (*loss)(struct dev *d, const struct tensor *dy, const struct loss_inputs *in);
    void (*adamw)(struct dev *d, const struct tensor *p, const struct tensor *g,
                  const struct tensor *m, const struct tensor *v, const struct adamw *o);
    bool (*all_finite)(struct dev *d, const struct tensor *x);
    /* kernels/dev_report.h; NULL if the device works in host memory. */
    void (*loss_to)(struct dev *d, double *loss, int32_t *bad, const struct tensor *dy,
                    const struct loss_inputs *in);
    void (*find_bad)(struct dev *d, int32_t *bad, const struct tensor *x);
    void (*send)(struct dev *d, void *host, const void *src, size_t bytes, int slot);
    void (*sent)(struct dev *d, int slot); /* waits for the last send of a slot */
    void (*cross_entropy)(struct dev *d, const struct tensor *nll, const struct tensor *x,
                          const struct tensor *target);
    /* kernels/dev_refine.h */
    void (*dequantize)(struct dev *d, const struct tensor *w, const struct tensor *codes,
                       const struct tensor *scales, const struct tensor *zeros,
                       int64_t group_size);
    void (*scale_steps)(struct dev *d, const struct tensor *scales,
                        const struct tensor *base, const struct tensor *u, int significant);
    void (*code_step)(struct dev *d, const struct tensor *codes,
                      const struct tensor *offsets, const struct tensor *grad, int bits,
                      float step);
    void (*group_dot)(struct dev *d, const struct tensor *out, const struct tensor *a,
                      const struct tensor *b, int64_t group_size);
    void (*rmsnorm_gain_bwd)(struct dev *d, const struct tensor *dg,
                             const struct tensor *dy, const struct tensor *x,
                             const struct tensor *s);
    void (*distill)(struct dev *d, double loss[2], const struct tensor *student,
                    const struct tensor *teacher, const struct tensor *target, float kl,
                    float ce);
    /* kernels/dev_experts.h */
    void (*gather)(struct dev *d, const struct tensor *y, const struct tensor *x,
                   const struct tensor *index, const struct tensor *weight);
    void (*gather_dot)(struct dev *d, const struct tensor *dw, const struct tensor *dy,
                       const struct tensor *x, const struct tensor *index);
};

struct dev {
    struct dev_ops ops;
    struct pool *pool;          /* NULL for ref */
    void *priv;                 /* the implementation's own */
    enum err failed;            /* sticky */
    struct upload_stage *stage; /* NULL until dev_upload_as() needs it */
    enum dtype preferred_act;
    int64_t most_head_dim;   /* of attention; 0: any */
    bool widens;             /* dev_widens() */
    bool link_tried, linked; /* with the devices of other ranks */
    bool queues;             /* operations return before their work is done */
    bool synchronous;        /* dev_set_synchronous(): they wait for it */
    double gemm_seconds;
    double part_seconds[N_DEV_PARTS]; /* by enum dev_part */
    char about[512];
};

/* Records a failure from inside an operation: the first one stays. */
void dev_fail(struct dev *d, enum err e, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Checks the arguments of a loss: ERR_SHAPE. */
enum err dev_check_loss(const struct tensor *dy, const struct loss_inputs *in);
/* Frees what dev_upload_as() keeps. */
void dev_close_stage(struct dev *d);

/* Each fills d->ops, and what it needs of priv, pool, about, preferred_act and widens. */
void ref_fill(struct dev *d);
enum err cpu_fill(struct dev *d, int threads);

/* Returns the bytes that attention with its backward allocates in a cpu device with that many
 * threads, which need not exist. */
int64_t cpu_attn_bytes(const struct attn_shape *s, int threads);

/* Makes dev_open() accept one more name, for a device that only tests link. */
void dev_register(const char *name, enum err (*fill)(struct dev *d, int threads));

#endif
