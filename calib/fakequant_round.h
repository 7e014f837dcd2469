/* SPDX-License-Identifier: MIT
 *
 * The rounding offsets of a block (weights.round: learned): an F32 for every weight, laid
 * out as the weights are, and a second for the best so far. Private to fakequant*.c. */
#ifndef WKVQ_FAKEQUANT_ROUND_H
#define WKVQ_FAKEQUANT_ROUND_H

#include "calib/fakequant.h"

/* All errors here are ERR_MEMORY (also of the device) and ERR_DEVICE. */
enum err round_open(struct fakequant *f);
void round_close(struct fakequant *f);
size_t round_bytes(const struct fakequant *f); /* on the device; 0 without offsets */

/* Present and best to 0: the codes are those of rounding to nearest. */
enum err round_zero(struct fakequant *f);
/* Keep the present offsets as the best, or go back to the best. */
enum err round_copy(struct fakequant *f, bool to_best);
/* Codes of projection l as the present offsets give them into q->codes, which it allocates
 * (owned by q); q has scales and zeros. */
enum err round_codes(const struct fakequant *f, struct qlinear *q, int l);

#endif
