/* SPDX-License-Identifier: MIT
 *
 * What differs between the C interfaces of oneDNN 2 and 3. In 3, a description of memory is an
 * object that must be destroyed, and a matmul has no description of its own. Private to
 * kernels/cpu. */
#ifndef WKVQ_ONEDNN_API_H
#define WKVQ_ONEDNN_API_H

#include <dnnl.h>
#include <dnnl_version.h>

#include <stddef.h>

#if DNNL_VERSION_MAJOR >= 3
typedef const_dnnl_memory_desc_t onednn_desc_ref;
#else
typedef const dnnl_memory_desc_t *onednn_desc_ref;
#endif

/* Describes a matrix [dims] of that type; elements are strides apart. *d is zeroed before. */
static inline dnnl_status_t onednn_describe(dnnl_memory_desc_t *d, const dnnl_dims_t dims,
                                            dnnl_data_type_t type,
                                            const dnnl_dims_t strides)
{
#if DNNL_VERSION_MAJOR >= 3
    return dnnl_memory_desc_create_with_strides(d, 2, dims, type, strides);
#else
    return dnnl_memory_desc_init_by_strides(d, 2, dims, type, strides);
#endif
}

static inline onednn_desc_ref onednn_desc_of(const dnnl_memory_desc_t *d)
{
#if DNNL_VERSION_MAJOR >= 3
    return *d;
#else
    return d;
#endif
}

/* Accepts a zeroed one. */
static inline void onednn_desc_drop(dnnl_memory_desc_t *d)
{
#if DNNL_VERSION_MAJOR >= 3
    if (*d)
        dnnl_memory_desc_destroy(*d);
    *d = NULL;
#else
    (void)d;
#endif
}

/* The product is added to what C holds. */
static inline dnnl_status_t onednn_append_sum(dnnl_post_ops_t ops)
{
#if DNNL_VERSION_MAJOR >= 3
    return dnnl_post_ops_append_sum(ops, 1.0f, 0, dnnl_data_type_undef);
#else
    return dnnl_post_ops_append_sum(ops, 1.0f);
#endif
}

/* *out: C = A B */
static inline dnnl_status_t onednn_matmul(dnnl_primitive_desc_t *out, dnnl_engine_t engine,
                                          const dnnl_memory_desc_t *a,
                                          const dnnl_memory_desc_t *b,
                                          const dnnl_memory_desc_t *c,
                                          dnnl_primitive_attr_t attr)
{
#if DNNL_VERSION_MAJOR >= 3
    return dnnl_matmul_primitive_desc_create(out, engine, *a, *b, NULL, *c, attr);
#else
    dnnl_matmul_desc_t matmul;
    const dnnl_status_t s = dnnl_matmul_desc_init(&matmul, a, b, NULL, c);
    return s ? s : dnnl_primitive_desc_create(out, &matmul, attr, engine, NULL);
#endif
}

#endif
