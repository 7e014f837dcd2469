/* SPDX-License-Identifier: MIT
 *
 * SIGINT and SIGTERM: the first asks for a stop at the next safe point, the second kills.
 */
#ifndef WKVQ_STOP_H
#define WKVQ_STOP_H

#include <stdbool.h>

/* Where there is no safe point to wait for, all work being redone from whole files, the
 * first signal ends the process at once, with status 130. */
enum stop_phase { STOP_AT_STEP, STOP_AT_ONCE };

void stop_watch(enum stop_phase phase);
/* Was a stop asked for? Suits calib_io.stop; ctx is not used. */
bool stop_asked(void *ctx);

#endif
