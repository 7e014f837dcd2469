/* SPDX-License-Identifier: MIT
 *
 * Operations of end-to-end refinement: what a model with fixed codes needs beside the
 * operations of kernels/dev.h, under the same laws (that header's comment). Alphabet: N
 * weight rows, C columns, G columns of a group (0: the whole row), n groups of a row, R
 * rows, V tokens of the vocabulary. */
#ifndef WKVQ_DEV_REFINE_H
#define WKVQ_DEV_REFINE_H

#include "kernels/dev.h"

/* w = (code - zero) scale, the value that kernels/tensor/quant.h gives. w act [N,C]; codes
 * U8, one a byte [N,C] or two a byte [N, ceil(C/2)] with the even column in the low nibble
 * (bits <= 4); scales F16 [N,n], zeros U8 [N,n]. w may have an ld. */
enum err dev_dequantize(struct dev *d, const struct tensor *w, const struct tensor *codes,
                        const struct tensor *scales, const struct tensor *zeros,
                        int64_t group_size);

/* scales = fp16(clamp(base exp(u), tiny, 65504)): scales that moved by the relative steps
 * u. scales, base F16 [N,n], contiguous; u F32 [N,n]. significant: bits of the scale's
 * significand that are kept, 11 for all of fp16's, fewer round to nearest even. */
enum err dev_scale_steps(struct dev *d, const struct tensor *scales,
                         const struct tensor *base, const struct tensor *u,
                         int significant);

/* out[r,g] += sum over the group's columns of a[r,c] b[r,c]. With a = dL/dw and b = w this
 * is dL/d(log scale) of (code - zero) scale. out F32 [N,n], a F32 [N,C], b act [N,C]. */
enum err dev_group_dot(struct dev *d, const struct tensor *out, const struct tensor *a,
                       const struct tensor *b, int64_t group_size);

/* Signed steps of the rounding. A code and its offset o stand for the place x = code + o on the
 * grid, -0.5 <= o <= 0.5. x moves by -step sign(grad) and is rounded again: the code changes by
 * one where o leaves its interval and the grid has another code; o stops at the interval's end
 * elsewhere. codes U8, in place, [N,C] or two a byte as in dev_dequantize; offsets F16 [N,C], in
 * place; grad F32 [N,C], dL/dw or dL/dx, whose signs agree. 0 < step < 1; 2 <= bits <= 8.
 *
 * Offsets have fp16's resolution: 2^-12 from 1/4 to 1/2, half of that from 1/8 to 1/4, and so on. A
 * step is rounded to it, and one below 2^-13 moves no offset between 1/4 and 1/2. */
enum err dev_code_step(struct dev *d, const struct tensor *codes,
                       const struct tensor *offsets, const struct tensor *grad, int bits,
                       float step);

/* dg[c] += sum_r dy[r,c] x[r,c] s[r]: the gain's gradient of dev_rmsnorm, whose x and s
 * these are. dg [C]; dy, x act, 2-D or 3-D as in dev_rmsnorm; s [R]. */
enum err dev_rmsnorm_gain_bwd(struct dev *d, const struct tensor *dg,
                              const struct tensor *dy, const struct tensor *x,
                              const struct tensor *s);

/* Distillation of next-token distributions p (teacher) and q (student), over R rows:
 *   loss[0] = sum_r KL(p_r || q_r) = sum_r sum_c p (log p - log q)
 *   loss[1] = sum_r -log q[r, target[r]]
 * in nats, host doubles, valid on return. student F32 [R,V], logits, becomes the gradient of
 * kl loss[0] + ce loss[1] in its logits: (kl + ce) q - kl p - ce [c = target]; teacher F32
 * [R,V], logits, is destroyed. target I32 [R]. */
enum err dev_distill(struct dev *d, double loss[2], const struct tensor *student,
                     const struct tensor *teacher, const struct tensor *target, float kl,
                     float ce);

#endif
