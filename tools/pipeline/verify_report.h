/* SPDX-License-Identifier: MIT
 *
 * The report of a verification, as text and as JSON, for `verify` and `quantize`. */
#ifndef WKVQ_VERIFY_REPORT_H
#define WKVQ_VERIFY_REPORT_H

#include "convert/verify/verify.h"

#include <jansson.h>

/* Prints the report on stdout. against, state and data say what the verification was given:
 * checkpoint, calibration state, text. A skipped part names the missing one. */
void verify_report_print(const struct verify_report *r, bool against, bool state,
                         bool data);
/* Makes the report as JSON; NULL: out of memory. Release it with json_decref. */
json_t *verify_report_json(const char *artifact, const struct verify_report *r);

#endif
