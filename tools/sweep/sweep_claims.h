/* SPDX-License-Identifier: MIT
 *
 * Claims about the cells of a sweep, which its page judges:
 *
 *   claims:
 *     - {claim: past-only quantization helps, better: full method, than: without POQ,
 *        by: perplexity}
 *
 * by: quality (the default: every text and task that was measured), perplexity (of the sweep's
 * text), zeroshot, longbench, memory.
 *
 * than may list two cells: the claim is then about the mean of both, so that "better than the
 * mean of A and B" says "nearer to A than to B". */
#ifndef WKVQ_SWEEP_CLAIMS_H
#define WKVQ_SWEEP_CLAIMS_H

#include "data/yaml.h"
#include "tools/sweep/sweep_plan.h"

/* Reads a list of claims into p->claims. ERR_USAGE names file and line. */
enum err sweep_claims_read(struct sweep_plan *p, const struct yaml *list, const char *path);
/* Refuses claims about cells that the plan lacks. Call it when all cells are known. */
enum err sweep_claims_check(const struct sweep_plan *p, const char *path);

#endif
