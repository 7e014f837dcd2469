/* SPDX-License-Identifier: MIT
 *
 * Plans of plain causal attention, as graphs of cuDNN's backend API. cuDNN recognizes the pattern
 * of operations, in the order and with the shapes below, and has one kernel for the whole.
 *
 *   forward   S = scale Q K^T, -inf where key > query      backward   D = sum_d dO o
 *             P = exp(S - max) / sum                                  P = exp(S - lse)
 *             lse = max + log(sum)                                    dV = P^T dO
 *             o = P V                                                 dS = scale P (dO V^T - D)
 *                                                                     dK = dS^T Q
 *                                                                     dQ = dS K
 *
 * Tensors are [1, heads, n, d] in the graph, with the tokens' distance as a stride. Only those at
 * the edges have memory; the n x n ones are virtual. dQ is the product itself: cuDNN then stores dS
 * in its workspace, and every sum has one order. In its other pattern dQ is an F32 tensor, copied
 * to BF16 after it, into which atomic additions go. The notes of engines do not tell the two apart
 * on a GPU of compute capability 9.0, so the pattern decides. */
#include "kernels/cuda/port.h"

#include "kernels/cuda/lib/cudnn.h"

#include <math.h>
#include <string.h>

namespace CUDA_NS
{

namespace
{

constexpr int MOST_OPS = 32, MOST_CONFIGS = 16;

/* A graph while it is made. After a failure, nothing is done any more. */
struct graph {
    const cudnn *lib;
    plan *p;
    cudnn_descriptor ops[MOST_OPS];
    int n_ops;
    int64_t next; /* number of the next virtual tensor */
};

/* A tensor of a graph. */
struct wire {
    cudnn_descriptor d;
    int64_t dim[4], stride[4];
};

cudnn_descriptor make(graph *g, int kind)
{
    cudnn_descriptor d = nullptr;
    plan *p = g->p;
    if (p->status == CUDNN_OK && p->n_made < PLAN_MOST)
        p->status = g->lib->make(kind, &d);
    if (d)
        p->made[p->n_made++] = d;
    return d;
}

void set(graph *g, cudnn_descriptor d, int attribute, int type, int64_t n, const void *p)
{
    if (g->p->status == CUDNN_OK)
        g->p->status = g->lib->set(d, attribute, type, n, p);
}

void set_one(graph *g, cudnn_descriptor d, int attribute, int type, int value)
{
    set(g, d, attribute, type, 1, &value);
}

void link(graph *g, cudnn_descriptor d, int attribute, cudnn_descriptor to)
{
    set(g, d, attribute, OF_DESCRIPTOR, 1, &to);
}

void finalize(graph *g, cudnn_descriptor d)
{
    if (g->p->status == CUDNN_OK)
        g->p->status = g->lib->finalize(d);
}

cudnn_descriptor add_op(graph *g, int kind)
{
    cudnn_descriptor d = make(g, kind);
    if (g->n_ops < MOST_OPS)
        g->ops[g->n_ops++] = d;
    return d;
}

/* A tensor; id PLAN_VIRTUAL: a new virtual one. */
wire tensor(graph *g, int64_t id, int type, const int64_t dim[4], const int64_t stride[4])
{
    wire w = {make(g, DNN_TENSOR),
              {dim[0], dim[1], dim[2], dim[3]},
              {stride[0], stride[1], stride[2], stride[3]}};
    const int64_t alignment = 16;
    const bool is_virtual = id == PLAN_VIRTUAL;
    const bool is_value = id >= N_PLAN_TENSORS && !is_virtual;
    if (is_virtual)
        id = g->next++;
    set(g, w.d, TENSOR_ID, OF_INT64, 1, &id);
    set_one(g, w.d, TENSOR_TYPE, OF_DATA_TYPE, type);
    set(g, w.d, TENSOR_ALIGNMENT, OF_INT64, 1, &alignment);
    set(g, w.d, TENSOR_DIMENSIONS, OF_INT64, 4, dim);
    set(g, w.d, TENSOR_STRIDES, OF_INT64, 4, stride);
    set(g, w.d, TENSOR_IS_VIRTUAL, OF_BOOL, 1, &is_virtual);
    set(g, w.d, TENSOR_IS_VALUE, OF_BOOL, 1, &is_value);
    finalize(g, w.d);
    return w;
}

wire packed(graph *g, int64_t id, int type, int64_t heads, int64_t rows, int64_t cols)
{
    const int64_t dim[] = {1, heads, rows, cols};
    const int64_t stride[] = {heads * rows * cols, rows * cols, cols, 1};
    return tensor(g, id, type, dim, stride);
}

/* [1, heads, n, d] of a tensor that the caller has; transposed: [1, heads, d, n]. */
wire operand(graph *g, plan_tensor t, int64_t heads, bool transposed = false)
{
    const plan_shape *s = &g->p->shape;
    const int64_t ld = s->ld[t];
    const int64_t dim[] = {1, heads, transposed ? s->d : s->n, transposed ? s->n : s->d};
    const int64_t stride[] = {ld * s->n, s->d, transposed ? 1 : ld, transposed ? ld : 1};
    return tensor(g, t, DNN_BF16, dim, stride);
}

void pointwise_to(graph *g, int mode, int precision, const wire &x, const wire *b,
                  const wire *t, const wire &y, int64_t axis = -1)
{
    const cudnn_descriptor how = make(g, DNN_POINTWISE), op = add_op(g, DNN_POINTWISE_OP);
    set_one(g, how, POINTWISE_MODE, OF_POINTWISE_MODE, mode);
    set_one(g, how, POINTWISE_PRECISION, OF_DATA_TYPE, precision);
    if (axis >= 0)
        set(g, how, POINTWISE_AXIS, OF_INT64, 1, &axis);
    finalize(g, how);
    link(g, op, POINTWISE_OP_DESC, how);
    link(g, op, POINTWISE_OP_X, x.d);
    if (b)
        link(g, op, POINTWISE_OP_B, b->d);
    if (t)
        link(g, op, POINTWISE_OP_T, t->d);
    link(g, op, POINTWISE_OP_Y, y.d);
    finalize(g, op);
}

/* y = x (mode) b, virtual and in the shape of x. */
wire pointwise(graph *g, int mode, const wire &x, const wire *b = nullptr,
               int type = DNN_F32)
{
    const wire y = packed(g, PLAN_VIRTUAL, type, x.dim[1], x.dim[2], x.dim[3]);
    pointwise_to(g, mode, DNN_F32, x, b, nullptr, y);
    return y;
}

void reduce_to(graph *g, int how_to, const wire &x, const wire &y)
{
    const cudnn_descriptor how = make(g, DNN_REDUCTION), op = add_op(g, DNN_REDUCTION_OP);
    set_one(g, how, REDUCTION_PRECISION, OF_DATA_TYPE, DNN_F32);
    set_one(g, how, REDUCTION_OPERATOR, OF_REDUCTION, how_to);
    finalize(g, how);
    link(g, op, REDUCTION_OP_DESC, how);
    link(g, op, REDUCTION_OP_X, x.d);
    link(g, op, REDUCTION_OP_Y, y.d);
    finalize(g, op);
}

/* One value per row. */
wire reduce(graph *g, int how_to, const wire &x)
{
    const wire y = packed(g, PLAN_VIRTUAL, DNN_F32, x.dim[1], x.dim[2], 1);
    reduce_to(g, how_to, x, y);
    return y;
}

/* Query head h reads kv head h / (H / K), where b has fewer heads than a. */
void matmul_to(graph *g, const wire &a, const wire &b, const wire &c)
{
    const cudnn_descriptor how = make(g, DNN_MATMUL), op = add_op(g, DNN_MATMUL_OP);
    set_one(g, how, MATMUL_PRECISION, OF_DATA_TYPE, DNN_F32);
    finalize(g, how);
    link(g, op, MATMUL_OP_DESC, how);
    link(g, op, MATMUL_OP_A, a.d);
    link(g, op, MATMUL_OP_B, b.d);
    link(g, op, MATMUL_OP_C, c.d);
    finalize(g, op);
}

wire matmul(graph *g, const wire &a, const wire &b, int type = DNN_F32)
{
    const wire c = packed(g, PLAN_VIRTUAL, type, a.dim[1], a.dim[2], b.dim[3]);
    matmul_to(g, a, b, c);
    return c;
}

/* x as BF16 with rows and columns exchanged: the same elements with other strides. */
wire transpose(graph *g, const wire &x)
{
    const int64_t dim[] = {x.dim[0], x.dim[1], x.dim[3], x.dim[2]};
    const int64_t stride[] = {x.stride[0], x.stride[1], x.stride[3], x.stride[2]};
    const wire y = tensor(g, PLAN_VIRTUAL, DNN_BF16, dim, stride);
    const cudnn_descriptor op = add_op(g, DNN_RESHAPE_OP);
    link(g, op, RESHAPE_OP_X, x.d);
    link(g, op, RESHAPE_OP_Y, y.d);
    finalize(g, op);
    return y;
}

/* S with -inf where the key comes after the query. */
wire mask(graph *g, const wire &S)
{
    const wire hidden = packed(g, PLAN_HIDDEN, DNN_F32, 1, 1, 1);
    const wire row = packed(g, PLAN_VIRTUAL, DNN_I32, S.dim[1], S.dim[2], S.dim[3]);
    const wire col = packed(g, PLAN_VIRTUAL, DNN_I32, S.dim[1], S.dim[2], S.dim[3]);
    const wire seen = packed(g, PLAN_VIRTUAL, DNN_BOOL, S.dim[1], S.dim[2], S.dim[3]);
    const wire y = packed(g, PLAN_VIRTUAL, DNN_F32, S.dim[1], S.dim[2], S.dim[3]);
    pointwise_to(g, PW_INDEX, DNN_F32, S, nullptr, nullptr, row, 2);
    pointwise_to(g, PW_INDEX, DNN_F32, S, nullptr, nullptr, col, 3);
    pointwise_to(g, PW_GE, DNN_BOOL, row, &col, nullptr, seen);
    pointwise_to(g, PW_SELECT, DNN_F32, S, &hidden, &seen, y);
    return y;
}

void forward_ops(graph *g)
{
    const plan_shape *s = &g->p->shape;
    const wire q = operand(g, PLAN_Q, s->H), kt = operand(g, PLAN_K, s->K, true),
               v = operand(g, PLAN_V, s->K), o = operand(g, PLAN_O, s->H),
               scale = packed(g, PLAN_SCALE, DNN_F32, 1, 1, 1),
               lse = packed(g, PLAN_LSE, DNN_F32, s->H, s->n, 1);
    const wire S = mask(g, pointwise(g, PW_MUL, matmul(g, q, kt), &scale));
    const wire max = reduce(g, REDUCE_MAX, S);
    const wire e = pointwise(g, PW_EXP, pointwise(g, PW_SUB, S, &max));
    const wire sum = reduce(g, REDUCE_ADD, e), log_sum = pointwise(g, PW_LOG, sum);
    pointwise_to(g, PW_ADD, DNN_F32, max, &log_sum, nullptr, lse);
    matmul_to(g, pointwise(g, PW_DIV, e, &sum, DNN_BF16), v, o);
}

/* A gradient of keys or values: a b, added up over the query heads that share a kv head. */
void key_gradient(graph *g, const wire &a, const wire &b, plan_tensor to)
{
    const plan_shape *s = &g->p->shape;
    const wire y = operand(g, to, s->K);
    if (s->H == s->K)
        matmul_to(g, a, b, y);
    else
        reduce_to(g, REDUCE_ADD, matmul(g, a, b, DNN_BF16), y);
}

/* D is multiplied by one because the pattern has a factor there, for dropout. */
void backward_ops(graph *g)
{
    const plan_shape *s = &g->p->shape;
    const wire q = operand(g, PLAN_Q, s->H), kt = operand(g, PLAN_K, s->K, true),
               vt = operand(g, PLAN_V, s->K, true), o = operand(g, PLAN_O, s->H),
               dout = operand(g, PLAN_DO, s->H), dq = operand(g, PLAN_DQ, s->H),
               scale = packed(g, PLAN_SCALE, DNN_F32, 1, 1, 1),
               one = packed(g, PLAN_ONE, DNN_F32, 1, 1, 1),
               lse = packed(g, PLAN_LSE, DNN_F32, s->H, s->n, 1),
               D = packed(g, PLAN_D, DNN_F32, s->H, s->n, 1);
    pointwise_to(g, PW_MUL, DNN_F32, reduce(g, REDUCE_ADD, pointwise(g, PW_MUL, dout, &o)),
                 &one, nullptr, D);
    const wire S = pointwise(g, PW_MUL, matmul(g, q, kt), &scale);
    const wire P = pointwise(g, PW_EXP, mask(g, pointwise(g, PW_SUB, S, &lse)));
    key_gradient(g, transpose(g, P), dout, PLAN_DV);
    const wire dP = pointwise(g, PW_SUB, matmul(g, dout, vt), &D);
    const wire dS = pointwise(g, PW_MUL, pointwise(g, PW_MUL, dP, &P), &scale);
    key_gradient(g, transpose(g, dS), q, PLAN_DK);
    matmul_to(g, dS, transpose(g, kt), dq);
}

cudnn_descriptor finished_graph(graph *g, cudnn_handle h)
{
    const cudnn_descriptor d = make(g, DNN_GRAPH);
    set(g, d, GRAPH_OPS, OF_DESCRIPTOR, g->n_ops, g->ops);
    if (h)
        set(g, d, GRAPH_HANDLE, OF_HANDLE, 1, &h);
    finalize(g, d);
    return d;
}

/* Configurations of engines for the graph, best first. Returns their number. */
int find_configs(graph *g, cudnn_descriptor of, cudnn_descriptor device,
                 cudnn_descriptor out[MOST_CONFIGS])
{
    const cudnn_descriptor d = make(g, DNN_HEURISTICS);
    int64_t n = 0;
    link(g, d, HEURISTICS_GRAPH, of);
    set_one(g, d, HEURISTICS_MODE, OF_HEURISTIC, DNN_HEURISTIC_A);
    if (device)
        link(g, d, HEURISTICS_DEVICE, device);
    finalize(g, d);
    for (int i = 0; i < MOST_CONFIGS; i++)
        out[i] = make(g, DNN_ENGINE_CONFIG);
    if (g->p->status == CUDNN_OK)
        g->p->status =
            g->lib->get(d, HEURISTICS_RESULTS, OF_DESCRIPTOR, MOST_CONFIGS, &n, out);
    return n < MOST_CONFIGS ? (int)n : MOST_CONFIGS;
}

/* False if the engine of a configuration is known to add in an order that may change. */
bool keeps_order(graph *g, cudnn_descriptor config)
{
    cudnn_descriptor engine = make(g, DNN_ENGINE);
    int notes[MOST_NOTES];
    int64_t n = 0;
    if (g->p->status == CUDNN_OK)
        g->p->status = g->lib->get(config, CONFIG_ENGINE, OF_DESCRIPTOR, 1, &n, &engine);
    if (g->p->status == CUDNN_OK)
        g->p->status = g->lib->get(engine, ENGINE_NOTES, OF_NOTE, MOST_NOTES, &n, notes);
    for (int64_t i = 0; i < n && i < MOST_NOTES; i++)
        if (notes[i] == NOTE_NONDETERMINISTIC)
            return false;
    return g->p->status == CUDNN_OK;
}

bool try_config(graph *g, cudnn_handle h, cudnn_descriptor device, cudnn_descriptor config)
{
    plan *p = g->p;
    int64_t n;
    if (!keeps_order(g, config))
        return false;
    const cudnn_descriptor d = make(g, DNN_PLAN);
    if (device)
        link(g, d, PLAN_DEVICE, device);
    else
        set(g, d, PLAN_HANDLE, OF_HANDLE, 1, &h);
    link(g, d, PLAN_CONFIG, config);
    finalize(g, d);
    if (p->status == CUDNN_OK)
        p->status = g->lib->get(d, PLAN_WORKSPACE, OF_INT64, 1, &n, &p->workspace);
    if (p->status == CUDNN_OK)
        p->ready = d;
    return p->ready;
}

} // namespace

bool dnn_lacks_memory(int status)
{
    return status == CUDNN_NO_HOST_MEMORY || status == CUDNN_NO_DEVICE_MEMORY;
}

void plan_make(const cudnn *lib, cudnn_handle h, cudnn_descriptor device,
               const plan_shape *shape, plan *p)
{
    cudnn_descriptor configs[MOST_CONFIGS];
    *p = {};
    p->shape = *shape;
    graph g = {lib, p, {}, 0, PLAN_VIRTUAL};
    if (shape->backward)
        backward_ops(&g);
    else
        forward_ops(&g);
    const int n = find_configs(&g, finished_graph(&g, h), device, configs);
    const int before = p->status;
    for (int i = 0; i < n && !p->ready && !dnn_lacks_memory(p->status); i++) {
        p->status = before;
        try_config(&g, h, device, configs[i]);
    }
    if (!p->ready && p->status == CUDNN_OK)
        p->status = CUDNN_UNSUPPORTED;
}

void plan_drop(const cudnn *lib, plan *p)
{
    while (p->n_made > 0)
        lib->drop(p->made[--p->n_made]);
    p->ready = nullptr;
}

int plan_run(const cudnn *lib, cudnn_handle h, const plan *p,
             void *const at[N_PLAN_TENSORS], float scale, void *workspace)
{
    float hidden = -INFINITY, one = 1;
    int64_t ids[PLAN_VIRTUAL], n = 0;
    const void *pointers[PLAN_VIRTUAL];
    for (int64_t t = 0; t < PLAN_VIRTUAL; t++) {
        const void *constants[] = {&scale, &hidden, &one};
        const void *memory = t < N_PLAN_TENSORS ? at[t] : constants[t - PLAN_SCALE];
        if (!memory || (t == PLAN_ONE && !p->shape.backward))
            continue;
        ids[n] = t;
        pointers[n++] = memory;
    }
    cudnn_descriptor pack = nullptr;
    int status = lib->make(DNN_PACK, &pack);
    if (status == CUDNN_OK)
        status = lib->set(pack, PACK_IDS, OF_INT64, n, ids);
    if (status == CUDNN_OK)
        status = lib->set(pack, PACK_POINTERS, OF_POINTER, n, pointers);
    if (status == CUDNN_OK)
        status = lib->set(pack, PACK_WORKSPACE, OF_POINTER, 1, &workspace);
    if (status == CUDNN_OK)
        status = lib->finalize(pack);
    if (status == CUDNN_OK)
        status = lib->execute(h, p->ready, pack);
    if (pack)
        lib->drop(pack);
    return status;
}

} // namespace CUDA_NS
