/* SPDX-License-Identifier: MIT
 *
 * The quantized embedding and output head (head.bits). Both are rounded to nearest under
 * scales and zeros that a search per group finds from the matrix alone, so that writer,
 * verification and simulation find the same ones. With a tied head there is one matrix. */
#ifndef WKVQ_ENDS_H
#define WKVQ_ENDS_H

#include "calib/model/weights.h"
#include "kernels/base/pool.h"

/* *q = scales and zeros of m in format f (fewer than 16 bits), without codes. p: threads,
 * NULL: only this one; the bits do not depend on them. Errors: ERR_FORMAT for a value that
 * is not finite, ERR_MEMORY. Free with qlinear_free. */
enum err ends_quantize(struct qlinear *q, struct pool *p, const struct host_mat *m,
                       struct lin_format f);
/* *out = the values that m becomes in format f: F32, data owned by the caller (ends_free).
 * At 16 bits a view of m. Errors: as ends_quantize. */
enum err ends_values(struct host_mat *out, struct pool *p, const struct host_mat *m,
                     struct lin_format f);
/* Releases what ends_values() made from m. */
void ends_free(struct host_mat *out, const struct host_mat *m);

/* Returns the host memory of an ends_source's own values. */
size_t ends_source_bytes(const struct arch *a, struct lin_format f);

/* A source whose embedding and head are the quantized values, and whose blocks are those of
 * another one. */
struct ends_source {
    struct model_source source;
    const struct model_source *from; /* borrowed */
    struct host_mat embed, norm, head;
    bool owned; /* embed and head are values of our own */
};
/* f: of both. Errors: those of ends_quantize and of from->ends. Close in any case. */
enum err ends_source_open(struct ends_source *s, const struct model_source *from,
                          struct lin_format f, int threads);
void ends_source_close(struct ends_source *s); /* accepts a zeroed one */

#endif
