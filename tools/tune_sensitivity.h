/* SPDX-License-Identifier: MIT
 *
 * The pass that estimates what formats cost, once for a model, text and configuration. */
#ifndef WKVQ_TUNE_SENSITIVITY_H
#define WKVQ_TUNE_SENSITIVITY_H

#include "calib/sensitivity.h"
#include "tools/opt.h"

/* s: with its formats. From work/sensitivity.json, which is written first unless it is
 * there and belongs to these. The pass takes a->samples windows of a->seqlen tokens, or
 * TUNE_WINDOWS, and runs in a process of its own: the caller has opened no device. Free s
 * whatever the result. */
enum err tune_sensitivity(struct sensitivity *s, const struct args *a,
                          const struct arch *arch, const char *model_dir, const char *work);

#define TUNE_WINDOWS 4

#endif
