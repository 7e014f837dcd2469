/* SPDX-License-Identifier: MIT
 *
 * A checkpoint's values are looked at once, when a block is loaded: a NaN that only shows
 * up in a loss, blocks later, names the wrong place. */
#ifndef WKVQ_FINITE_H
#define WKVQ_FINITE_H

#include "calib/model/weights.h"

/* ERR_FORMAT with block and tensor when loaded weights hold a NaN or an infinity (also one
 * that the act type made of a value out of its range). src: where w was loaded from. */
enum err finite_weights(const struct block_weights *w, const struct arch *a,
                        const struct block_src *src, int64_t block);

#endif
