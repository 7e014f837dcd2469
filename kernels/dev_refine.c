/* SPDX-License-Identifier: MIT
 *
 * The checks of kernels/dev_refine.h's contracts, then one table call each. */
#include "kernels/dev_refine.h"

#include "kernels/dev_begin.h"
#include "kernels/norm_rows.h"

enum err dev_dequantize(struct dev *d, const struct tensor *w, const struct tensor *codes,
                        const struct tensor *scales, const struct tensor *zeros,
                        int64_t group_size)
{
    OP_BEGIN(dequantize, started);
    WANT(is_act(w) && w->n_dims == 2, "dequantize: want w act [N,C]");
    const int64_t N = w->dim[0], C = w->dim[1], n = weight_groups(C, group_size);
    WANT(is_matrix(codes, DT_U8, N, C) || is_matrix(codes, DT_U8, N, (C + 1) / 2),
         "dequantize: want codes U8 [N,C] or [N,ceil(C/2)]");
    WANT(is_matrix(scales, DT_F16, N, n) && is_matrix(zeros, DT_U8, N, n),
         "dequantize: want scales F16, zeros U8 [N,n]");
    d->ops.dequantize(d, w, codes, scales, zeros, group_size);
    OP_END(DEV_FAKE_QUANT, started);
}

enum err dev_scale_steps(struct dev *d, const struct tensor *scales,
                         const struct tensor *base, const struct tensor *u, int significant)
{
    OP_BEGIN(scale_steps, started);
    WANT(is_type(scales, DT_F16) && is_type(base, DT_F16) && is_f32(u) &&
             scales->n_dims == 2 && same_shape(base, scales) && same_shape(u, scales) &&
             contiguous(scales) && contiguous(base) && contiguous(u),
         "scale_steps: want scales, base F16 and u F32 of one shape");
    WANT(significant >= 1 && significant <= 11, "scale_steps: want 1 to 11 bits");
    d->ops.scale_steps(d, scales, base, u, significant);
    OP_END(DEV_FAKE_QUANT, started);
}

enum err dev_group_dot(struct dev *d, const struct tensor *out, const struct tensor *a,
                       const struct tensor *b, int64_t group_size)
{
    OP_BEGIN(group_dot, started);
    WANT(is_f32(a) && is_act(b) && a->n_dims == 2 && same_shape(b, a),
         "group_dot: want a F32, b act [N,C]");
    WANT(is_matrix(out, DT_F32, a->dim[0], weight_groups(a->dim[1], group_size)),
         "group_dot: want out F32 [N,n]");
    d->ops.group_dot(d, out, a, b, group_size);
    OP_END(DEV_FAKE_QUANT, started);
}

enum err dev_code_step(struct dev *d, const struct tensor *codes,
                       const struct tensor *offsets, const struct tensor *grad, int bits,
                       float step)
{
    OP_BEGIN(code_step, started);
    WANT(is_f32(grad) && grad->n_dims == 2, "code_step: want grad F32 [N,C]");
    const int64_t N = grad->dim[0], C = grad->dim[1];
    WANT(is_matrix(codes, DT_U8, N, C) ||
             (bits <= 4 && is_matrix(codes, DT_U8, N, (C + 1) / 2)),
         "code_step: want codes U8 [N,C], or [N,ceil(C/2)] of up to 4 bits");
    WANT(is_matrix(offsets, DT_F16, N, C), "code_step: want offsets F16 [N,C]");
    WANT(bits >= 2 && bits <= 8 && step > 0 && step < 1,
         "code_step: want 2 to 8 bits and a step between 0 and 1");
    d->ops.code_step(d, codes, offsets, grad, bits, step);
    OP_END(DEV_OPTIMIZER, started);
}

enum err dev_rmsnorm_gain_bwd(struct dev *d, const struct tensor *dg,
                              const struct tensor *dy, const struct tensor *x,
                              const struct tensor *s)
{
    OP_BEGIN(rmsnorm_gain_bwd, started);
    WANT(is_act(dy) && is_act(x) && (is_2d(x) || is_3d(x)) && same_shape(dy, x),
         "rmsnorm_gain_bwd: want dy, x of one shape [R,C] or [T,H,d]");
    WANT(vec(dg, x->dim[x->n_dims - 1]) && vec(s, norm_rows(x)),
         "rmsnorm_gain_bwd: want dg [C], s [R]");
    d->ops.rmsnorm_gain_bwd(d, dg, dy, x, s);
    OP_END(DEV_ELEMENTWISE, started);
}

enum err dev_distill(struct dev *d, double loss[2], const struct tensor *student,
                     const struct tensor *teacher, const struct tensor *target, float kl,
                     float ce)
{
    OP_BEGIN(distill, started);
    WANT(is_f32(student) && is_f32(teacher) && is_2d(student) &&
             same_shape(teacher, student),
         "distill: want student, teacher F32 [R,V]");
    WANT(flat(target, DT_I32, student->dim[0]), "distill: want target I32 [R]");
    d->ops.distill(d, loss, student, teacher, target, kl, ce);
    OP_END(DEV_LOSS, started);
}
