/* SPDX-License-Identifier: MIT
 *
 * The pass that estimates the loss of each format, once per model, text and
 * configuration. */
#ifndef WKVQ_TUNE_SENSITIVITY_H
#define WKVQ_TUNE_SENSITIVITY_H

#include "calib/sensitivity.h"
#include "tools/tune/tune.h"

/* Computes s together with its formats, or reads it from work_dir/sensitivity.json if that
 * has the same model, text and configuration. The pass takes settings.samples windows of
 * settings.seqlen tokens, or TUNE_WINDOWS. It runs in a child process, so the caller has no
 * open device. model_crc: hf_identity of the checkpoint. Free s whatever the result. */
enum err tune_sensitivity(struct sensitivity *s, const struct tune_settings *settings,
                          const uint32_t *model_crc, const struct arch *arch);

#define TUNE_WINDOWS 4

#endif
