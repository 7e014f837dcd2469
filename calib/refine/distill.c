/* SPDX-License-Identifier: MIT
 *
 * The loss of one window: with p the full-precision model's next-token distribution and q the
 * student's, kl mean KL(p || q) + ce mean -log q(next). Both models share the head unless it
 * is quantized. Their logits exist for a few rows at a time. */
#include "calib/refine/distill.h"

#include "calib/model/carve.h"
#include "calib/model/model.h"
#include "kernels/dev_refine.h"

/* Logits that exist at a time, of one of the two models. Theirs together are no more than 1.5 times
 * LOGITS_BYTES. Another size changes refined artifacts in their last bits: losses are summed piece
 * by piece. */
#define DISTILL_BYTES (INT64_C(48) << 20)

/* Returns the rows of T whose logits exist at a time. */
static int64_t piece_of(const struct arch *a, int64_t T)
{
    return model_logit_rows(a, T, DISTILL_BYTES);
}

static void layout(struct distiller *x, struct carve *c, enum dtype act, int heads)
{
    const int64_t D = x->arch->d_model, V = x->arch->vocab;
    const int64_t rows = piece_of(x->arch, x->T);
    for (int i = 0; i < 2; i++)
        x->head[i] = i < heads ? carve_2d(c, act, V, D) : x->head[0];
    x->y = carve_2d(c, act, x->T, D);
    x->dy = carve_2d(c, DT_F32, x->T, D);
    x->s = carve_1d(c, DT_F32, x->T);
    for (int i = 0; i < 2; i++)
        x->logits[i] = carve_2d(c, DT_F32, rows, V);
    x->target = carve_1d(c, DT_I32, rows);
}

size_t distiller_bytes(const struct arch *a, int64_t T, enum dtype act, int heads)
{
    struct distiller x = {.arch = a, .T = T};
    struct carve c = {0};
    layout(&x, &c, act, heads);
    return c.used;
}

size_t distiller_widened_bytes(const struct arch *a, int64_t T)
{
    const int64_t D = a->d_model, V = a->vocab, rows = piece_of(a, T);
    return (size_t)(rows * D + V * D + rows * V) * sizeof(float);
}

static enum err load_head(struct distiller *x, const struct tensor *to,
                          const struct model_source *src)
{
    struct host_mat embed, norm, head;
    TRY(src->ends(src->ctx, &embed, &norm, &head));
    TRY(host_mat_check(&head, "head", x->arch->vocab, x->arch->d_model));
    return host_mat_upload(x->dev, to, &head);
}

enum err distiller_open(struct distiller *x, struct dev *d, const struct arch *a,
                        const struct model_source *student,
                        const struct model_source *teacher, int64_t T, enum dtype act)
{
    const int heads = student == teacher ? 1 : 2;
    struct carve c = {0};
    *x = (struct distiller){.dev = d, .arch = a, .T = T};
    layout(x, &c, act, heads);
    TRY(dev_alloc(d, &x->memory, c.used));
    c = (struct carve){.base = x->memory};
    layout(x, &c, act, heads);
    TRY(load_head(x, &x->head[0], student));
    return heads == 1 ? OK : load_head(x, &x->head[1], teacher);
}

void distiller_close(struct distiller *x)
{
    if (x->dev)
        dev_free(x->dev, x->memory);
    *x = (struct distiller){0};
}

/* dy = dlogits head, because logits = y head^T. With a BF16 head the gradient of the logits
 * becomes an operand of BF16, in the memory of the teacher's logits, which are spent. */
static enum err head_bwd(struct distiller *x, const struct tensor *dy,
                         const struct tensor *dlogits, struct tensor spare)
{
    if (x->head[0].dtype == DT_F32)
        return dev_gemm(x->dev, GEMM_NN, dy, dlogits, &x->head[0], false);
    spare.dtype = DT_BF16;
    TRY(dev_copy(x->dev, &spare, dlogits));
    return dev_gemm(x->dev, GEMM_NN, dy, &spare, &x->head[0], false);
}

/* Rows [t, t + rows): adds to loss; g: writes those rows of x->dy. */
static enum err rows_loss(struct distiller *x, double loss[2], const struct distill_pair *p,
                          const struct distill_grads *g, int64_t t, int64_t rows)
{
    const float k = g ? g->scale / (float)(x->T - 1) : 0;
    const struct tensor y = tensor_rows(x->y, t, rows), dy = tensor_rows(x->dy, t, rows);
    const struct tensor teacher_y = tensor_rows(*p->teacher, t, rows);
    const struct tensor student = tensor_rows(x->logits[0], 0, rows);
    const struct tensor teacher = tensor_rows(x->logits[1], 0, rows);
    const struct tensor target = tensor_rows(x->target, 0, rows);
    double sum[2];
    TRY(dev_gemm(x->dev, GEMM_NT, &student, &y, &x->head[0], false));
    TRY(dev_gemm(x->dev, GEMM_NT, &teacher, &teacher_y, &x->head[1], false));
    TRY(dev_upload(x->dev, target.data, p->ids + t + 1, (size_t)rows * sizeof(int32_t)));
    TRY(dev_distill(x->dev, sum, &student, &teacher, &target, g ? k * g->kl : 0,
                    g ? k * g->ce : 0));
    loss[0] += sum[0] / (double)(x->T - 1);
    loss[1] += sum[1] / (double)(x->T - 1);
    return g ? head_bwd(x, &dy, &student, teacher) : OK;
}

enum err distill_loss(struct distiller *x, double loss[2], const struct distill_pair *p,
                      const struct distill_grads *g)
{
    const int64_t piece = x->logits[0].dim[0], n = x->T - 1;
    loss[0] = loss[1] = 0;
    TRY(model_last(x->dev, x->arch, &x->y, &x->s, p->h, p->gain));
    if (g) /* the last token predicts nothing */
        TRY(dev_zero(x->dev, x->dy.data, (size_t)tensor_count(&x->dy) * sizeof(float)));
    for (int64_t t = 0; t < n; t += piece)
        TRY(rows_loss(x, loss, p, g, t, n - t < piece ? n - t : piece));
    if (!g)
        return OK;
    const struct last_grads grads = {g->dh, g->dgain, &x->dy};
    return model_last_bwd(x->dev, x->arch, &grads, &x->s, p->h, p->gain);
}
