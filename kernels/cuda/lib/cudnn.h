/* SPDX-License-Identifier: MIT
 *
 * The part of cuDNN that this device calls: its graph API, and plans of attention made with it. The
 * library is opened by name, and its header is not needed to build. These declarations are those of
 * its binary interface since version 9.15. tests/kernels/cudnn_values.cc compares them with the
 * header where there is one. */
#ifndef WKVQ_CUDNN_H
#define WKVQ_CUDNN_H

#include <stddef.h>
#include <stdint.h>

struct attn_grads;
struct attn_inputs;
struct dev;
struct tensor;

namespace CUDA_NS
{

typedef struct cudnnContext *cudnn_handle;
typedef void *cudnn_descriptor;

constexpr int CUDNN_OK = 0;             /* of cudnnStatus_t */
constexpr int CUDNN_UNSUPPORTED = 3000; /* and up to 3999, by reason */
constexpr int CUDNN_NO_HOST_MEMORY = 4003, CUDNN_NO_DEVICE_MEMORY = 4004;

/* Kinds of descriptors, of cudnnBackendDescriptorType_t. */
enum cudnn_kind {
    DNN_POINTWISE = 0,
    DNN_ENGINE = 2,
    DNN_ENGINE_CONFIG = 3,
    DNN_HEURISTICS = 4,
    DNN_PLAN = 5,
    DNN_POINTWISE_OP = 13,
    DNN_GRAPH = 15,
    DNN_PACK = 16,
    DNN_TENSOR = 17,
    DNN_MATMUL = 18,
    DNN_MATMUL_OP = 19,
    DNN_REDUCTION = 21,
    DNN_REDUCTION_OP = 22,
    DNN_RESHAPE_OP = 31,
    DNN_DEVICE = 38
};

/* Attributes, of cudnnBackendAttributeName_t. */
enum cudnn_attribute {
    POINTWISE_MODE = 0,
    POINTWISE_PRECISION = 1,
    POINTWISE_AXIS = 9,
    HEURISTICS_MODE = 200,
    HEURISTICS_GRAPH = 201,
    HEURISTICS_RESULTS = 202,
    HEURISTICS_DEVICE = 204,
    CONFIG_ENGINE = 300,
    PLAN_HANDLE = 400,
    PLAN_CONFIG = 401,
    PLAN_WORKSPACE = 402,
    PLAN_DEVICE = 407,
    POINTWISE_OP_DESC = 750,
    POINTWISE_OP_X = 751,
    POINTWISE_OP_B = 752,
    POINTWISE_OP_Y = 753,
    POINTWISE_OP_T = 758,
    GRAPH_HANDLE = 800,
    GRAPH_OPS = 801,
    TENSOR_ALIGNMENT = 900,
    TENSOR_TYPE = 901,
    TENSOR_DIMENSIONS = 902,
    TENSOR_STRIDES = 903,
    TENSOR_ID = 906,
    TENSOR_IS_VIRTUAL = 907,
    TENSOR_IS_VALUE = 908,
    PACK_IDS = 1000,
    PACK_POINTERS = 1001,
    PACK_WORKSPACE = 1003,
    ENGINE_NOTES = 1303,
    MATMUL_PRECISION = 1500,
    MATMUL_OP_A = 1520,
    MATMUL_OP_B = 1521,
    MATMUL_OP_C = 1522,
    MATMUL_OP_DESC = 1523,
    REDUCTION_OPERATOR = 1600,
    REDUCTION_PRECISION = 1601,
    REDUCTION_OP_X = 1610,
    REDUCTION_OP_Y = 1611,
    REDUCTION_OP_DESC = 1612,
    RESHAPE_OP_X = 2200,
    RESHAPE_OP_Y = 2201,
    DEVICE_JSON = 2702
};

/* Types of attributes, of cudnnBackendAttributeType_t. */
enum cudnn_type {
    OF_HANDLE = 0,
    OF_DATA_TYPE = 1,
    OF_BOOL = 2,
    OF_INT64 = 3,
    OF_POINTER = 6,
    OF_HEURISTIC = 8,
    OF_NOTE = 11,
    OF_POINTWISE_MODE = 14,
    OF_DESCRIPTOR = 15,
    OF_REDUCTION = 18,
    OF_CHAR = 24
};

/* Element types, of cudnnDataType_t. */
enum cudnn_data { DNN_F32 = 0, DNN_I32 = 4, DNN_BF16 = 9, DNN_BOOL = 11 };

/* Of cudnnPointwiseMode_t. SELECT is y = t ? x : b. INDEX numbers the elements along an axis. */
enum cudnn_pointwise {
    PW_ADD = 0,
    PW_MUL = 1,
    PW_DIV = 6,
    PW_SUB = 9,
    PW_EXP = 13,
    PW_LOG = 15,
    PW_GE = 303,
    PW_INDEX = 501,
    PW_SELECT = 601
};

enum cudnn_reduction { REDUCE_ADD = 0, REDUCE_MAX = 3 }; /* of cudnnReduceTensorOp_t */
constexpr int DNN_HEURISTIC_A = 3;                       /* of cudnnBackendHeurMode_t */
/* Of cudnnBackendNumericalNote_t: sums in an order that differs between runs. */
constexpr int NOTE_NONDETERMINISTIC = 4;
constexpr int MOST_NOTES = 16;

struct cudnn {
    size_t (*version)(void); /* 10000 major + 100 minor + patch */
    int (*create)(cudnn_handle *out);
    int (*destroy)(cudnn_handle h);
    int (*set_stream)(cudnn_handle h, cudaStream_t s);
    const char *(*text)(int status);
    int (*make)(int kind, cudnn_descriptor *out);
    int (*drop)(cudnn_descriptor d);
    int (*finalize)(cudnn_descriptor d);
    int (*set)(cudnn_descriptor d, int attribute, int type, int64_t n, const void *p);
    int (*get)(const void *d, int attribute, int type, int64_t most, int64_t *n, void *p);
    int (*execute)(cudnn_handle h, cudnn_descriptor plan, cudnn_descriptor pack);
};

/* Returns whether a status says that memory was missing, so that the call may succeed another
 * time. No reason to compute in another way: the bits of a run do not depend on free memory. */
bool dnn_lacks_memory(int status);

/* --- plans of plain causal attention: cuda_plan.cu ------------------------------------ */

/* Tensors that a plan reads and writes, and their numbers in its graph. All are BF16 [n,heads,d]
 * with tokens at a distance, except lse and D: F32 [H][n]. D is working memory of the backward. */
enum plan_tensor {
    PLAN_Q,
    PLAN_K,
    PLAN_V,
    PLAN_O,
    PLAN_LSE,
    PLAN_DO,
    PLAN_DQ,
    PLAN_DK,
    PLAN_DV,
    PLAN_D,
    N_PLAN_TENSORS,
    PLAN_SCALE = N_PLAN_TENSORS, /* constants */
    PLAN_HIDDEN,
    PLAN_ONE,
    PLAN_VIRTUAL /* and up: inside the graph */
};

struct plan_shape {
    int64_t n, H, K, d;
    int64_t
        ld[N_PLAN_TENSORS]; /* elements between tokens; 0 for tensors that are not used */
    int64_t backward;       /* 0 or 1 */
};

constexpr int PLAN_MOST = 160; /* descriptors of a plan */

struct plan {
    plan_shape shape;
    cudnn_descriptor made[PLAN_MOST];
    int n_made;
    cudnn_descriptor ready; /* NULL: the library has no plan for this shape; see status */
    int status;
    int64_t workspace; /* bytes */
};

/* Makes a plan for a handle's GPU, or for the GPU that a descriptor describes (tests without one).
 * The sums of a plan have one order: cuda_plan.cu says why. p->ready is NULL without a plan. */
void plan_make(const cudnn *lib, cudnn_handle h, cudnn_descriptor device,
               const plan_shape *shape, plan *p);
void plan_drop(const cudnn *lib, plan *p);
/* Queues a plan on the handle's stream. at: the memory of each tensor that the shape has. */
int plan_run(const cudnn *lib, cudnn_handle h, const plan *p,
             void *const at[N_PLAN_TENSORS], float scale, void *workspace);

/* --- the plans of a device: cuda_cudnn.cu ---------------------------------------------- */

/* What a failed allocation for this attention says. */
#define DNN_MEMORY                                                                         \
    "memory for attention with cuDNN (a smaller seqlen, or WKVQ_CUDNN=none in the "        \
    "environment, needs less)"

/* The plan for a shape, made at its first use; NULL if there is none, or after dev_fail() if memory
 * was missing. Else that depends on the shape, the library and the kind of GPU alone. */
const plan *dnn_plan(struct dev *d, const plan_shape *shape);
/* Queues it, with working memory in SLOT_B; false after dev_fail(). */
bool dnn_run(struct dev *d, const plan *p, void *const at[N_PLAN_TENSORS], float scale);

/* --- attention in parts: cuda_parts.cu ------------------------------------------------- */

/* Like the operations of kernels/dev_ops.h. False: cuDNN does not compute this attention, and
 * nothing has been done. True: it is queued, or has failed (dev_fail()). */
bool parts_attn(struct dev *d, const struct tensor *o, const struct tensor *lse,
                const struct attn_inputs *in);
bool parts_attn_bwd(struct dev *d, const struct attn_grads *grads,
                    const struct tensor *dout, const struct tensor *o,
                    const struct tensor *lse, const struct attn_inputs *in);

} // namespace CUDA_NS

#endif
