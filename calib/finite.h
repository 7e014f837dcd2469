/* SPDX-License-Identifier: MIT
 *
 * Checks a block's weights when it is loaded, and those outside the blocks before all work. A NaN
 * found later, in a loss some blocks away, would be reported in the wrong place. */
#ifndef WKVQ_FINITE_H
#define WKVQ_FINITE_H

#include "calib/model/weights.h"

/* Returns ERR_FORMAT, naming block and tensor, if a loaded weight is NaN or infinite; that
 * includes values out of the act type's range. src: where w was loaded from. */
enum err finite_weights(const struct block_weights *w, const struct arch *a,
                        const struct block_src *src, int64_t block);
/* Returns ERR_FORMAT, naming tensor and element, if a value of the embedding, the final norm or the
 * head is NaN or infinite. Reads all of them once. */
enum err finite_ends(const struct model_source *src);

#endif
