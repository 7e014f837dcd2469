/* SPDX-License-Identifier: MIT
 *
 * What tells two identities of a calibration apart. */
#ifndef WKVQ_STATE_DIFF_H
#define WKVQ_STATE_DIFF_H

#include "kernels/base/error.h"

#include <jansson.h>

/* OK when the two objects are equal; else ERR_MISMATCH naming the first field (in the order
 * of run) that differs, with both values. where starts the message. */
enum err state_compare(const char *where, const json_t *have, const json_t *run);

#endif
