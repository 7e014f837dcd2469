/* SPDX-License-Identifier: MIT
 *
 * The rounding offsets of a block (weights.round: learned): one F32 per weight in the
 * layout of the weights, current and best. Private to fakequant*.c. */
#ifndef WKVQ_FAKEQUANT_ROUND_H
#define WKVQ_FAKEQUANT_ROUND_H

#include "calib/fakequant.h"

/* Errors here: ERR_MEMORY (also of the device), ERR_DEVICE. */
enum err round_open(struct fakequant *f);
void round_close(struct fakequant *f);
size_t round_bytes(const struct fakequant *f); /* device memory; 0 without offsets */

/* Clears the current and the best offsets: round to nearest. */
enum err round_zero(struct fakequant *f);
/* Copies the current offsets to the best ones, or back. */
enum err round_copy(struct fakequant *f, bool to_best);
/* Allocates q->codes and sets them as the current offsets round. q has scales and zeros. */
enum err round_codes(const struct fakequant *f, struct qlinear *q, int l);

#endif
