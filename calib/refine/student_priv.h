/* SPDX-License-Identifier: MIT
 *
 * Shared by the parts of a student: student_open.c makes it, student.c computes. Private to
 * calib/refine. */
#ifndef WKVQ_STUDENT_PRIV_H
#define WKVQ_STUDENT_PRIV_H

#include "calib/refine/student.h"

/* Channels of keys, or of values, of a token. */
static inline int64_t student_channels(const struct arch *a)
{
    return a->n_kv * a->head_dim;
}

/* Bytes of a row of codes: those of up to 4 bits lie two a byte. */
static inline int64_t student_code_bytes(const struct qlinear *q)
{
    return q->format.bits <= 4 ? (q->in + 1) / 2 : q->in;
}

#endif
