/* SPDX-License-Identifier: MIT
 *
 * The head of both models and the loss between them. Logits exist for a bounded number of
 * tokens at a time. */
#ifndef WKVQ_DISTILL_H
#define WKVQ_DISTILL_H

#include "calib/model/weights.h"

struct distiller {
    struct dev *dev;
    const struct arch *arch;
    int64_t T;
    void *memory;
    /* [V,D] act: the student's and the teacher's, one tensor where they are the same. */
    struct tensor head[2];
    struct tensor y, dy, s;          /* [T,D] act, [T,D] F32, [T]: normalized states */
    struct tensor logits[2], target; /* student's, teacher's [rows,V] F32; [rows] I32 */
};

/* Returns its device memory, with one head or two. */
size_t distiller_bytes(const struct arch *a, int64_t T, enum dtype act, int heads);
/* Returns what its products take where BF16 operands are widened to F32 first. */
size_t distiller_widened_bytes(const struct arch *a, int64_t T);
/* student and teacher: the sources of their heads; one and the same for one head. */
enum err distiller_open(struct distiller *x, struct dev *d, const struct arch *a,
                        const struct model_source *student,
                        const struct model_source *teacher, int64_t T, enum dtype act);
void distiller_close(struct distiller *x); /* accepts a zeroed or half-built one */

/* What is compared: the student's last hidden states h [T,D] F32 under its final norm's gain
 * [D]; the teacher's normalized last states [T,D] act; the window's tokens, host [T]. */
struct distill_pair {
    const struct tensor *h, *gain, *teacher;
    const int32_t *ids;
};
/* Where gradients of scale (kl loss[0] + ce loss[1]) go: dh [T,D] F32 is overwritten, dgain
 * [D] is added to. */
struct distill_grads {
    const struct tensor *dh, *dgain;
    float kl, ce, scale;
};
/* loss[0], loss[1]: mean divergence and cross entropy over the T - 1 predicted tokens, nats.
 * g NULL: loss only. */
enum err distill_loss(struct distiller *x, double loss[2], const struct distill_pair *p,
                      const struct distill_grads *g);

#endif
