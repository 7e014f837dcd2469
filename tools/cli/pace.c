/* SPDX-License-Identifier: MIT */
#include "tools/cli/pace.h"

#define LEAST_DONE 1e-4 /* of the whole, or */
#define LEAST_S 60      /* the time after which any pace is better than none */

double pace_left(struct pace *p, double now, double done, double left)
{
    if (!p->started) {
        p->started = true;
        p->from.s = p->next.s = now;
        p->from.done = p->next.done = done;
    }
    if (now - p->next.s > PACE_WINDOW_S) {
        p->from = p->next;
        p->next.s = now;
        p->next.done = done;
    }
    const double gained = done - p->from.done, seconds = now - p->from.s;
    if (!(gained > LEAST_DONE || (gained > 0 && seconds > LEAST_S)))
        return -1;
    return seconds * left / gained;
}
