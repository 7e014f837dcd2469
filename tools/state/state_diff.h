/* SPDX-License-Identifier: MIT
 *
 * Finds the difference between two identities of a calibration. */
#ifndef WKVQ_STATE_DIFF_H
#define WKVQ_STATE_DIFF_H

#include "kernels/base/error.h"

#include <jansson.h>

/* Returns OK if the objects are equal. Otherwise ERR_MISMATCH names the first differing
 * field, in the order of run, with both values. where starts the message. */
enum err state_compare(const char *where, const json_t *have, const json_t *run);

#endif
