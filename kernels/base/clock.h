/* SPDX-License-Identifier: MIT
 *
 * The monotonic clock, for durations. */
#ifndef WKVQ_CLOCK_H
#define WKVQ_CLOCK_H

/* Seconds since an arbitrary point; setting the system's time does not move it. */
double clock_s(void);

#endif
