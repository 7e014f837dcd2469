/* SPDX-License-Identifier: MIT
 *
 * The pace of a run, from which the time that it still needs follows. */
#ifndef WKVQ_PACE_H
#define WKVQ_PACE_H

#include <stdbool.h>

#define PACE_WINDOW_S 300

/* Two moments of a run: what was done by then, as a share of the whole, and the clock in seconds.
 * The pace is taken since the earlier one, which lies 1 to 2 windows back. So the time during which
 * a run was suspended, or the cores had other work, does not count for ever. */
struct pace {
    bool started;
    struct {
        double s, done;
    } from, next;
};

/* Returns the seconds that the rest takes at this pace, -1: too early to say. done: share that this
 * run has finished, never falling. left: share still to do, which an earlier run may have made less
 * than 1 - done. now: the clock in seconds. */
double pace_left(struct pace *p, double now, double done, double left);

#endif
