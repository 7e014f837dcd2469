/* SPDX-License-Identifier: MIT
 *
 * Element types and the view. A tensor owns nothing. */
#ifndef WKVQ_TENSOR_H
#define WKVQ_TENSOR_H

#include "kernels/base/error.h"

#include <stdbool.h>
#include <stdint.h>

enum dtype { DT_F32, DT_F16, DT_BF16, DT_I32, DT_I64, DT_U8, DT_I8, DT_BOOL, DT_OTHER };

/* Bytes of one element; 0 for DT_OTHER. */
size_t dtype_bytes(enum dtype t);
/* safetensors' name ("F32"); "?" for DT_OTHER. */
const char *dtype_name(enum dtype t);

#define TENSOR_MAX_DIMS 4

/* Row-major view. The last dimension is contiguous; rows (all leading dimensions flattened)
 * of a 2-D view are ld elements apart. For 3-D [T, H, d] views, ld is the distance between
 * consecutive t, and the H*d elements of one t are contiguous. Vectors: ld is ignored. */
struct tensor {
    void *data; /* device memory, or host memory where a function says so */
    enum dtype dtype;
    int n_dims;
    int64_t dim[TENSOR_MAX_DIMS];
    int64_t ld; /* elements */
};

/* Contiguous views over data. */
struct tensor tensor_1d(void *data, enum dtype t, int64_t n);
struct tensor tensor_2d(void *data, enum dtype t, int64_t rows, int64_t cols);
struct tensor tensor_3d(void *data, enum dtype t, int64_t n0, int64_t n1, int64_t n2);
/* Columns [first, first + n) of a 2-D view; shares memory and ld. */
struct tensor tensor_cols(struct tensor x, int64_t first, int64_t n);
/* Rows [first, first + n) of a view of 1 to 3 dimensions (dim[0]). */
struct tensor tensor_rows(struct tensor x, int64_t first, int64_t n);
/* A 2-D [T, H*d] view as 3-D [T, H, d]; ld kept. */
struct tensor tensor_heads(struct tensor x, int64_t heads);
int64_t tensor_count(const struct tensor *x);

/* A host tensor with a name: what states and artifacts are made of. */
struct named_tensor {
    char name[128];
    struct tensor t; /* host, contiguous */
};

/* Host conversion, n elements: from F32, F16 or BF16 at src (any alignment) to f32 or bf16.
 */
void host_to_f32(float *dst, const void *src, enum dtype t, int64_t n);
void host_to_bf16(uint16_t *dst, const void *src, enum dtype t, int64_t n);

#endif
