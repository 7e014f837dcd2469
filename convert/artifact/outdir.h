/* SPDX-License-Identifier: MIT
 *
 * A directory that appears under its name only when it is whole: filled as OUT.tmp.PID
 * beside it, then renamed. */
#ifndef WKVQ_OUTDIR_H
#define WKVQ_OUTDIR_H

#include "kernels/base/error.h"

#include <stdbool.h>

struct outdir {
    char *final; /* where it will be */
    char *tmp;   /* where it is filled */
    bool replace;
};

/* Check that out_dir may be written (it is missing, empty, or an artifact of nothing but
 * its manifest's files and force is set: ERR_USAGE otherwise), remove what killed runs left
 * beside it, and make the temporary directory. */
enum err outdir_open(struct outdir *out, const char *out_dir, bool force);
/* Rename into place, durably. Whatever the result, d is released; on error the temporary
 * directory is removed. */
enum err outdir_commit(struct outdir *d);
/* Remove the temporary directory. Accepts a zeroed one. */
void outdir_abort(struct outdir *d);

#endif
