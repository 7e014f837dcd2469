/* SPDX-License-Identifier: MIT
 *
 * Checks a block's weights when it is loaded. A NaN found later, in a loss some blocks
 * away, would be reported in the wrong place. */
#ifndef WKVQ_FINITE_H
#define WKVQ_FINITE_H

#include "calib/model/weights.h"

/* Returns ERR_FORMAT, naming block and tensor, if a loaded weight is NaN or infinite; that
 * includes values out of the act type's range. src: where w was loaded from. */
enum err finite_weights(const struct block_weights *w, const struct arch *a,
                        const struct block_src *src, int64_t block);

#endif
