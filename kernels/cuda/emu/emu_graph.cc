/* SPDX-License-Identifier: MIT */
#include "kernels/cuda/emu/emu_graph.h"

#include "kernels/cuda/emu/emu_runtime.h"

#include "kernels/cuda/lib/cudnn.h"

extern "C" {
#include "kernels/base/half.h"
}

#include <map>
#include <math.h>

using namespace CUDA_NS;

namespace emu
{

namespace
{

struct place {
    int64_t at[4];
};

/* Values of virtual tensors, packed by rows. */
typedef std::map<int64_t, std::vector<double>> values;

int64_t count(const dnn_array &a)
{
    return a.dim[0] * a.dim[1] * a.dim[2] * a.dim[3];
}

place place_of(const dnn_array &a, int64_t i)
{
    place p;
    for (int k = 3; k >= 0; k--) {
        p.at[k] = i % a.dim[k];
        i /= a.dim[k];
    }
    return p;
}

/* The element of a that belongs to element p of a tensor with the dimensions dim: a dimension of 1
 * is repeated, and so are heads that several others share. */
place shared(const dnn_array &a, const int64_t dim[4], place p)
{
    for (int k = 0; k < 4; k++)
        p.at[k] /= dim[k] / a.dim[k];
    return p;
}

double read(const dnn_array &a, const values &v, place p)
{
    int64_t packed = 0, strided = 0;
    for (int k = 0; k < 4; k++) {
        packed = packed * a.dim[k] + p.at[k];
        strided += p.at[k] * a.stride[k];
    }
    if (a.is_value)
        return (double)a.constant;
    if (a.is_virtual)
        return v.at(a.id)[(size_t)packed];
    return (double)(a.type == DNN_BF16 ? bf16_to_f32(((const uint16_t *)a.p)[strided])
                                       : ((const float *)a.p)[strided]);
}

double rounded(int type, double x)
{
    if (type == DNN_BF16)
        return (double)bf16_to_f32(bf16_from_f32((float)x));
    return type == DNN_F32 ? (double)(float)x : x;
}

void write(const dnn_array &a, values *v, int64_t i, double x)
{
    const place p = place_of(a, i);
    int64_t strided = 0;
    for (int k = 0; k < 4; k++)
        strided += p.at[k] * a.stride[k];
    if (a.is_virtual) {
        (*v)[a.id].resize((size_t)count(a));
        (*v)[a.id][(size_t)i] = rounded(a.type, x);
    } else if (a.type == DNN_BF16) {
        ((uint16_t *)a.p)[strided] = bf16_from_f32((float)x);
    } else {
        ((float *)a.p)[strided] = (float)x;
    }
}

double compute(int mode, double x, double b, double t)
{
    switch (mode) {
    case PW_ADD:
        return x + b;
    case PW_SUB:
        return x - b;
    case PW_MUL:
        return x * b;
    case PW_DIV:
        return x / b;
    case PW_EXP:
        return exp(x);
    case PW_LOG:
        return log(x);
    case PW_GE:
        return x >= b;
    case PW_SELECT:
        return t != 0 ? x : b;
    default:
        return NAN;
    }
}

void pointwise(const dnn_op &op, values *v)
{
    for (int64_t i = 0; i < count(op.y); i++) {
        const place p = place_of(op.y, i);
        double in[3] = {0, 0, 0};
        const dnn_array *arrays[] = {&op.x, &op.b, &op.t};
        for (int k = 0; k < 3 && op.mode != PW_INDEX; k++)
            if (arrays[k]->dim[0])
                in[k] = read(*arrays[k], *v, shared(*arrays[k], op.y.dim, p));
        write(op.y, v, i,
              op.mode == PW_INDEX ? (double)p.at[op.axis]
                                  : compute(op.mode, in[0], in[1], in[2]));
    }
}

void reduction(const dnn_op &op, values *v)
{
    std::vector<double> sum((size_t)count(op.y), op.mode == REDUCE_MAX ? -INFINITY : 0);
    for (int64_t i = 0; i < count(op.x); i++) {
        const place p = place_of(op.x, i), to = shared(op.y, op.x.dim, p);
        int64_t at = 0;
        for (int k = 0; k < 4; k++)
            at = at * op.y.dim[k] + to.at[k];
        double *s = &sum[(size_t)at];
        const double x = read(op.x, *v, p);
        *s = op.mode == REDUCE_MAX ? fmax(*s, x) : *s + x;
    }
    for (int64_t i = 0; i < count(op.y); i++)
        write(op.y, v, i, sum[(size_t)i]);
}

void matmul(const dnn_op &op, values *v)
{
    for (int64_t i = 0; i < count(op.y); i++) {
        const place p = place_of(op.y, i);
        const int64_t h = p.at[1] / (op.y.dim[1] / op.b.dim[1]);
        double sum = 0;
        for (int64_t l = 0; l < op.x.dim[3]; l++)
            sum += read(op.x, *v, {{p.at[0], p.at[1], p.at[2], l}}) *
                   read(op.b, *v, {{p.at[0], h, l, p.at[3]}});
        write(op.y, v, i, sum);
    }
}

void reshape(const dnn_op &op, values *v)
{
    for (int64_t i = 0; i < count(op.y); i++) {
        const place p = place_of(op.y, i);
        write(op.y, v, i, read(op.x, *v, {{p.at[0], p.at[1], p.at[3], p.at[2]}}));
    }
}

bool divides(const dnn_array &a, const int64_t dim[4])
{
    for (int k = 0; k < 4; k++)
        if (a.dim[k] < 1 || dim[k] % a.dim[k] ||
            (k != 1 && a.dim[k] != 1 && a.dim[k] != dim[k]))
            return false;
    return true;
}

bool op_fits(const dnn_op &op)
{
    const dnn_array &x = op.x, &b = op.b, &y = op.y;
    switch (op.kind) {
    case DNN_OP_POINTWISE:
        return divides(x, y.dim) && (!b.dim[0] || divides(b, y.dim)) &&
               (!op.t.dim[0] || divides(op.t, y.dim));
    case DNN_OP_REDUCTION:
        return divides(y, x.dim);
    case DNN_OP_MATMUL:
        return x.dim[1] == y.dim[1] && b.dim[1] > 0 && y.dim[1] % b.dim[1] == 0 &&
               x.dim[3] == b.dim[2] && y.dim[2] == x.dim[2] && y.dim[3] == b.dim[3];
    default: /* rows and columns are exchanged, and the elements stay where they are */
        return x.dim[1] == y.dim[1] && x.dim[2] == y.dim[3] && x.dim[3] == y.dim[2] &&
               x.stride[2] == y.stride[3] && x.stride[3] == y.stride[2];
    }
}

} // namespace

bool dnn_fits(const std::vector<dnn_op> &ops)
{
    std::map<int64_t, bool> written;
    for (const dnn_op &op : ops) {
        for (const dnn_array *a : {&op.x, &op.b, &op.t})
            if (a->dim[0] && a->is_virtual && !written[a->id])
                return false;
        if (!op_fits(op))
            return false;
        written[op.y.id] = true;
    }
    return true;
}

void dnn_run(const std::vector<dnn_op> &ops, bool spoilt)
{
    values v;
    for (const dnn_op &op : ops)
        switch (op.kind) {
        case DNN_OP_POINTWISE:
            pointwise(op, &v);
            break;
        case DNN_OP_REDUCTION:
            reduction(op, &v);
            break;
        case DNN_OP_MATMUL:
            matmul(op, &v);
            break;
        default:
            reshape(op, &v);
        }
    for (const dnn_op &op : ops)
        for (int64_t i = 0; spoilt && !op.y.is_virtual && i < count(op.y); i++)
            write(op.y, &v, i, NAN);
}

} // namespace emu
