/* SPDX-License-Identifier: MIT
 *
 * The pass that estimates what formats cost, once for a model, text and configuration. */
#ifndef WKVQ_TUNE_SENSITIVITY_H
#define WKVQ_TUNE_SENSITIVITY_H

#include "calib/sensitivity.h"
#include "tools/tune/tune.h"

/* s: with its formats. From work_dir/sensitivity.json, which is written first unless it is
 * there and belongs to these. The pass takes settings.samples windows of settings.seqlen
 * tokens, or TUNE_WINDOWS, and runs in a process of its own: the caller has opened no
 * device. model_crc: hf_identity of the checkpoint. Free s whatever the result. */
enum err tune_sensitivity(struct sensitivity *s, const struct tune_settings *settings,
                          const uint32_t *model_crc, const struct arch *arch);

#define TUNE_WINDOWS 4

#endif
