/* SPDX-License-Identifier: MIT
 *
 * A scratch directory for the tests of this folder, as a group's or a case's setup and
 * teardown, and a check of results. Include it after cmocka.h. */
#ifndef WKVQ_DIR_FIXTURE_H
#define WKVQ_DIR_FIXTURE_H

#include "kernels/base/error.h"
#include "tests/scratch.h"

static char dir[96];

static inline int make_dir(void **state)
{
    return scratch_dir(dir, sizeof(dir)) ? 0 : -1;
}

/* Fails if anything but plain files is left in it. */
static inline int drop_dir(void **state)
{
    return !scratch_remove(dir);
}

/* Fails the test with the message of an error and where it was found. */
static inline void ok(enum err e)
{
    if (e)
        fail_msg("%s (%s)", err_text(), err_where());
}

#endif
