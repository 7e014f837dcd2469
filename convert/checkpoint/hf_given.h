/* SPDX-License-Identifier: MIT
 *
 * The values of packed projections, one block at a time. Private to convert/checkpoint. */
#ifndef WKVQ_HF_GIVEN_H
#define WKVQ_HF_GIVEN_H

#include "calib/model/weights.h"
#include "convert/checkpoint/packed/packed.h"

/* The memory of one block while it is in use; zeroed: none. */
struct given_block {
    struct qlinear lin[N_LIN]; /* scales and zeros, no codes */
    float *values[N_LIN];      /* [out][in] (q - z) h */
    bool made;
};

/* Points b's packed projections at their values and b->given at their scales and zeros. Both
 * are views of g, which given_block_free() releases. Errors: ERR_MEMORY, ERR_FORMAT
 * for another shape than b's, those of packed_read(). */
enum err given_block_make(struct given_block *g, struct block_src *b,
                          const struct packed *p);
void given_block_free(struct given_block *g);

#endif
