/* SPDX-License-Identifier: MIT */
#include "kernels/cuda/emu/emu_cudnn.h"

#include "kernels/cuda/emu/emu_graph.h"
#include "kernels/cuda/lib/cudnn.h"

#include <map>
#include <memory>
#include <vector>

using namespace CUDA_NS;
using emu::dnn_array;
using emu::dnn_op;

struct CUDA_NS::cudnnContext {
    cudaStream_t stream;
};

namespace
{

enum { BAD_PARAM = 2000, MISALIGNED = 2003, NOT_FINAL = 2004, FAILED = 5000 };

/* What has been set, by attribute. */
struct descriptor {
    int kind;
    bool final;
    std::map<int, std::vector<char>> values;
    int order; /* of the engine of a configuration: 0 has no fixed one */
    bool dropped;
};

std::vector<std::unique_ptr<descriptor>> all_dropped; /* kept, to recognize them */

bool fails(const char *name)
{
    return emu_card()->cudnn_fails && !strcmp(emu_card()->cudnn_fails, name);
}

template <class T> const T *value(const descriptor *d, int attribute)
{
    const auto at = d->values.find(attribute);
    return at == d->values.end() || at->second.size() < sizeof(T)
               ? NULL
               : (const T *)at->second.data();
}

const descriptor *linked(const descriptor *d, int attribute)
{
    const cudnn_descriptor *p = value<cudnn_descriptor>(d, attribute);
    return p ? (const descriptor *)*p : NULL;
}

template <class T> T number(const descriptor *d, int attribute, T otherwise)
{
    const T *p = d ? value<T>(d, attribute) : NULL;
    return p ? *p : otherwise;
}

size_t size_of(int type)
{
    switch (type) {
    case OF_BOOL:
    case OF_CHAR:
        return 1;
    case OF_INT64:
    case OF_POINTER:
    case OF_DESCRIPTOR:
    case OF_HANDLE:
        return 8;
    default:
        return 4;
    }
}

size_t version()
{
    return (size_t)emu_card()->cudnn;
}

int create(cudnn_handle *out)
{
    if (fails("cudnnCreate") && emu_card()->cudnn_status)
        return emu_card()->cudnn_status;
    if (fails("cudnnCreate") || emu_card_call())
        return FAILED;
    *out = new cudnnContext{emu::DEFAULT};
    return CUDNN_OK;
}

int destroy(cudnn_handle h)
{
    delete h;
    return CUDNN_OK;
}

int set_stream(cudnn_handle h, cudaStream_t s)
{
    h->stream = s;
    return fails("cudnnSetStream") ? FAILED : CUDNN_OK;
}

const char *text(int status)
{
    return status == CUDNN_OK            ? "CUDNN_STATUS_SUCCESS"
           : status == CUDNN_UNSUPPORTED ? "CUDNN_STATUS_NOT_SUPPORTED"
           : status == FAILED            ? "CUDNN_STATUS_EXECUTION_FAILED"
                                         : "CUDNN_STATUS_BAD_PARAM";
}

int make(int kind, cudnn_descriptor *out)
{
    *out = new descriptor{kind, false, {}, 0, false};
    return CUDNN_OK;
}

int drop(cudnn_descriptor of)
{
    descriptor *d = (descriptor *)of;
    if (d->dropped)
        emu::mistake("a descriptor of cuDNN is destroyed twice");
    else
        all_dropped.emplace_back(d);
    d->dropped = true;
    d->values.clear();
    return CUDNN_OK;
}

int set(cudnn_descriptor to, int attribute, int type, int64_t n, const void *p)
{
    descriptor *d = (descriptor *)to;
    if (d->final || !p || n < 1)
        return BAD_PARAM;
    const char *bytes = (const char *)p;
    d->values[attribute].assign(bytes, bytes + (size_t)n * size_of(type));
    if (type == OF_DESCRIPTOR)
        for (int64_t i = 0; i < n; i++)
            if (!((const descriptor *const *)p)[i]->final)
                return NOT_FINAL;
    return CUDNN_OK;
}

dnn_array array_of(const descriptor *d)
{
    dnn_array a = {};
    if (!d)
        return a;
    a.id = number<int64_t>(d, TENSOR_ID, -1);
    a.type = number<int>(d, TENSOR_TYPE, DNN_F32);
    a.is_virtual = number<bool>(d, TENSOR_IS_VIRTUAL, false);
    a.is_value = number<bool>(d, TENSOR_IS_VALUE, false);
    memcpy(a.dim, value<int64_t>(d, TENSOR_DIMENSIONS), sizeof(a.dim));
    memcpy(a.stride, value<int64_t>(d, TENSOR_STRIDES), sizeof(a.stride));
    return a;
}

/* An operation with its tensors; those it lacks have id 0 and no dimensions. */
dnn_op op_of(const descriptor *d)
{
    switch (d->kind) {
    case DNN_POINTWISE_OP: {
        const descriptor *how = linked(d, POINTWISE_OP_DESC);
        return {emu::DNN_OP_POINTWISE,
                number<int>(how, POINTWISE_MODE, -1),
                number<int64_t>(how, POINTWISE_AXIS, -1),
                array_of(linked(d, POINTWISE_OP_X)),
                array_of(linked(d, POINTWISE_OP_B)),
                array_of(linked(d, POINTWISE_OP_T)),
                array_of(linked(d, POINTWISE_OP_Y))};
    }
    case DNN_REDUCTION_OP:
        return {emu::DNN_OP_REDUCTION,
                number<int>(linked(d, REDUCTION_OP_DESC), REDUCTION_OPERATOR, -1),
                -1,
                array_of(linked(d, REDUCTION_OP_X)),
                {},
                {},
                array_of(linked(d, REDUCTION_OP_Y))};
    case DNN_MATMUL_OP:
        return {emu::DNN_OP_MATMUL,
                0,
                -1,
                array_of(linked(d, MATMUL_OP_A)),
                array_of(linked(d, MATMUL_OP_B)),
                {},
                array_of(linked(d, MATMUL_OP_C))};
    default:
        return {emu::DNN_OP_RESHAPE,
                0,
                -1,
                array_of(linked(d, RESHAPE_OP_X)),
                {},
                {},
                array_of(linked(d, RESHAPE_OP_Y))};
    }
}

std::vector<dnn_op> ops_of(const descriptor *graph)
{
    std::vector<dnn_op> ops;
    const std::vector<char> &bytes = graph->values.at(GRAPH_OPS);
    for (size_t i = 0; i < bytes.size() / sizeof(cudnn_descriptor); i++)
        ops.push_back(op_of(((const descriptor *const *)bytes.data())[i]));
    return ops;
}

std::vector<dnn_op> ops_of_plan(const descriptor *plan)
{
    return ops_of(linked(linked(plan, PLAN_CONFIG), HEURISTICS_GRAPH));
}

bool is_tensor_whole(const descriptor *d)
{
    return value<int64_t[4]>(d, TENSOR_DIMENSIONS) &&
           value<int64_t[4]>(d, TENSOR_STRIDES) && value<int64_t>(d, TENSOR_ID) &&
           value<int>(d, TENSOR_TYPE) && value<int64_t>(d, TENSOR_ALIGNMENT);
}

/* Whether a tensor in memory is read in pieces of 16 bytes, as attention wants. */
bool is_aligned(const dnn_array &a)
{
    bool aligned = true;
    for (int k = 0; k < 4; k++)
        aligned = aligned && (a.stride[k] == 1 ? a.dim[k] : a.stride[k]) % 8 == 0;
    return a.is_virtual || a.type != DNN_BF16 || aligned;
}

bool is_refused(const descriptor *plan)
{
    return linked(plan, PLAN_CONFIG)->order <= emu_card()->cudnn_refuses &&
           emu_card()->cudnn_refuses > 0;
}

int finalize(cudnn_descriptor of)
{
    descriptor *d = (descriptor *)of;
    if (d->kind == DNN_TENSOR && !is_tensor_whole(d))
        return BAD_PARAM;
    if (d->kind == DNN_TENSOR && !is_aligned(array_of(d)))
        emu::mistake("a tensor for cuDNN is not aligned to 16 bytes");
    if (d->kind == DNN_GRAPH && !value<cudnn_handle>(d, GRAPH_HANDLE))
        return BAD_PARAM;
    if (d->kind == DNN_GRAPH && !emu::dnn_fits(ops_of(d)))
        return BAD_PARAM;
    if (d->kind == DNN_PLAN &&
        (!linked(d, PLAN_CONFIG) || !value<cudnn_handle>(d, PLAN_HANDLE)))
        return BAD_PARAM;
    if (d->kind == DNN_PLAN && is_refused(d))
        return emu_card()->cudnn_status ? emu_card()->cudnn_status : CUDNN_UNSUPPORTED;
    d->final = true;
    return CUDNN_OK;
}

/* Three configurations for a graph; only the first engine's sums have no fixed order. */
int find_configs(const descriptor *d, int64_t most, int64_t *n, descriptor **out)
{
    *n = most < 3 ? most : 3;
    for (int64_t i = 0; i < *n; i++) {
        out[i]->values[HEURISTICS_GRAPH] = d->values.at(HEURISTICS_GRAPH);
        out[i]->order = (int)i;
        out[i]->final = true;
    }
    return CUDNN_OK;
}

int64_t in_tiles(int64_t n)
{
    return (n + 127) / 128 * 128;
}

/* Bytes in which the library works: a few always, for dS of a backward, in whole tiles, and for
 * gradients of each head where heads share keys. */
int64_t workspace_of(const std::vector<dnn_op> &ops)
{
    int64_t dS = 0, shared = 0;
    for (const dnn_op &op : ops) {
        const int64_t *dim = op.x.dim, N = in_tiles(dim[2]);
        if (op.kind == emu::DNN_OP_RESHAPE && dim[2] == dim[3] && dS < 2 * dim[1] * N * N)
            dS = 2 * dim[1] * N * N;
        if (op.kind == emu::DNN_OP_REDUCTION && op.y.dim[1] < dim[1])
            shared += 2 * dim[1] * N * dim[3];
    }
    return 256 + dS + shared;
}

int get(const void *of, int attribute, int, int64_t most, int64_t *n, void *p)
{
    const descriptor *d = (const descriptor *)of;
    if (!d->final || most < 1)
        return NOT_FINAL;
    *n = 1;
    switch (attribute) {
    case HEURISTICS_RESULTS:
        return find_configs(d, most, n, (descriptor **)p);
    case CONFIG_ENGINE:
        (*(descriptor **)p)->order = d->order;
        (*(descriptor **)p)->final = true;
        return CUDNN_OK;
    case ENGINE_NOTES:
        *(int *)p = NOTE_NONDETERMINISTIC;
        *n = d->order == 0;
        return CUDNN_OK;
    case PLAN_WORKSPACE:
        *(int64_t *)p = workspace_of(ops_of_plan(d));
        return CUDNN_OK;
    default:
        return BAD_PARAM;
    }
}

/* Where each tensor is. Constants are read when the plan is executed, as by cuDNN. */
bool bind(std::vector<dnn_op> *ops, const descriptor *pack)
{
    const std::vector<char> &ids = pack->values.at(PACK_IDS);
    const std::vector<char> &pointers = pack->values.at(PACK_POINTERS);
    if (ids.size() != pointers.size())
        return false;
    for (dnn_op &op : *ops)
        for (dnn_array *a : {&op.x, &op.b, &op.t, &op.y}) {
            for (size_t i = 0; i < ids.size() / 8; i++)
                if (((const int64_t *)ids.data())[i] == a->id)
                    a->p = ((void *const *)pointers.data())[i];
            if (a->dim[0] && !a->is_virtual &&
                (!a->p || (uintptr_t)a->p % (a->is_value ? 4 : 16)))
                return false;
            if (a->is_value)
                a->constant = *(const float *)a->p;
        }
    return true;
}

int execute(cudnn_handle h, cudnn_descriptor plan, cudnn_descriptor pack)
{
    const descriptor *config = linked((const descriptor *)plan, PLAN_CONFIG);
    std::vector<dnn_op> ops = ops_of_plan((const descriptor *)plan);
    void *const *workspace = value<void *>((const descriptor *)pack, PACK_WORKSPACE);
    const size_t bytes = (size_t)workspace_of(ops);
    if (!((const descriptor *)plan)->final || !((const descriptor *)pack)->final)
        return NOT_FINAL;
    if (!workspace || (bytes && !*workspace))
        return BAD_PARAM;
    if (!bind(&ops, (const descriptor *)pack))
        return MISALIGNED;
    if (emu_card_call() || fails("cudnnBackendExecute"))
        return FAILED;
    const bool spoilt = config->order == 0;
    emu_card()->cudnn_runs++;
    void *const scratch = *workspace;
    const descriptor *of = (const descriptor *)plan;
    emu::queue(h->stream, [=] {
        if (of->dropped)
            emu::mistake("a plan of cuDNN is destroyed before it has run");
        memset(scratch, 0xff, bytes);
        emu::dnn_run(ops, spoilt);
    });
    return CUDNN_OK;
}

} // namespace

void *emu_cudnn_symbol(const char *name)
{
    const char *lacks = emu_card()->cudnn_lacks;
    if (lacks && !strcmp(lacks, name))
        return NULL;
    static const struct {
        const char *name;
        void *f;
    } symbols[] = {{"cudnnGetVersion", (void *)version},
                   {"cudnnCreate", (void *)create},
                   {"cudnnDestroy", (void *)destroy},
                   {"cudnnSetStream", (void *)set_stream},
                   {"cudnnGetErrorString", (void *)text},
                   {"cudnnBackendCreateDescriptor", (void *)make},
                   {"cudnnBackendDestroyDescriptor", (void *)drop},
                   {"cudnnBackendFinalize", (void *)finalize},
                   {"cudnnBackendSetAttribute", (void *)set},
                   {"cudnnBackendGetAttribute", (void *)get},
                   {"cudnnBackendExecute", (void *)execute}};
    for (const auto &s : symbols)
        if (!strcmp(s.name, name))
            return s.f;
    return NULL;
}
