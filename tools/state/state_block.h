/* SPDX-License-Identifier: MIT
 *
 * A finished block of a calibration as a safetensors file. */
#ifndef WKVQ_STATE_BLOCK_H
#define WKVQ_STATE_BLOCK_H

#include "calib/calib.h"

/* Saves block `layer` of a model a. stats NULL: no statistics, as for a refined block. */
enum err state_block_save(const char *path, const struct block_quant *q,
                          const struct arch *a, int64_t layer,
                          const struct calib_block_stats *stats);
/* Returns the bytes of the tensors in the file of block `layer`, which is a refined one if
 * w->refined. */
uint64_t state_block_bytes(const struct arch *a, int64_t layer,
                           const struct weight_spec *w);
/* What a file of a state takes beside its tensors, at most: its header, and its lines in the
 * manifest. */
#define STATE_TEXT_BYTES UINT64_C(6144)
/* Loads the file of block `layer`, which has codes if weight_chooses_codes() and gains of norms
 * if w->refined. Checks every shape against a and the specs. ERR_FORMAT
 * names the tensor. The caller releases *out with block_quant_free. */
enum err state_block_load(struct block_quant *out, const char *path, const struct arch *a,
                          int64_t layer, const struct weight_spec *w,
                          const struct kv_spec *kv);

#endif
