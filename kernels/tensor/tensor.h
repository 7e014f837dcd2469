/* SPDX-License-Identifier: MIT
 *
 * Element types, and the view of memory that all operations take. A tensor owns nothing:
 * the allocator of data frees it. */
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

/* A row-major view. The last dimension is contiguous. In a 2-D view [R, C], rows are ld
 * elements apart. In a 3-D view [T, H, d], tokens are ld elements apart, and the H * d
 * elements of a token are contiguous. ld is ignored in a vector. */
struct tensor {
    void *data; /* device memory, or host memory where a function says so */
    enum dtype dtype;
    int n_dims;
    int64_t dim[TENSOR_MAX_DIMS];
    int64_t ld; /* elements */
};

/* Contiguous views of data. */
struct tensor tensor_1d(void *data, enum dtype t, int64_t n);
struct tensor tensor_2d(void *data, enum dtype t, int64_t rows, int64_t cols);
struct tensor tensor_3d(void *data, enum dtype t, int64_t n0, int64_t n1, int64_t n2);
/* Columns [first, first + n) of a 2-D view, in the same memory. */
struct tensor tensor_cols(struct tensor x, int64_t first, int64_t n);
/* Entries [first, first + n) of the first dimension of a view with 1 to 3 dimensions. */
struct tensor tensor_rows(struct tensor x, int64_t first, int64_t n);
/* A 2-D view [T, H*d] as a 3-D view [T, H, d], in the same memory. */
struct tensor tensor_heads(struct tensor x, int64_t heads);
int64_t tensor_count(const struct tensor *x);
/* A view as rows of contiguous elements: those of a matrix, the tokens of a 3-D view, or one
 * vector. */
int64_t tensor_n_rows(const struct tensor *x);
int64_t tensor_width(const struct tensor *x); /* elements of such a row */

/* A named tensor in host memory; states and artifacts are lists of them. */
struct named_tensor {
    char name[128];
    struct tensor t; /* host, contiguous */
};

/* Convert n elements in host memory, from F32, F16 or BF16 at any alignment. */
void host_to_f32(float *dst, const void *src, enum dtype t, int64_t n);
void host_to_bf16(uint16_t *dst, const void *src, enum dtype t, int64_t n);

#endif
