/* SPDX-License-Identifier: MIT
 *
 * A verification's report, for people and for machines: what `verify` and `quantize` print.
 */
#ifndef WKVQ_VERIFY_REPORT_H
#define WKVQ_VERIFY_REPORT_H

#include "convert/verify/verify.h"

#include <jansson.h>

/* On stdout. What the verification had: the checkpoint, the calibration's state, a text; a
 * part that was skipped says what it lacked. */
void verify_report_print(const struct verify_report *r, bool against, bool state,
                         bool data);
/* NULL: out of memory. */
json_t *verify_report_json(const char *artifact, const struct verify_report *r);

#endif
