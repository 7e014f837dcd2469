/* SPDX-License-Identifier: MIT
 *
 * A directory that appears under its name only when it is whole. It is filled in a staging
 * directory of this process and then put in place by a rename. Where a rename over OUT
 * cannot work (a mount point, the working directory, a parent that is not writable), the
 * staging directory is inside OUT: the files move one by one, the manifest last, and a
 * reader refuses a directory without its manifest. docs/security.md says what may be
 * replaced and removed. */
#ifndef WKVQ_OUTDIR_H
#define WKVQ_OUTDIR_H

#include "kernels/base/error.h"

#include <stdbool.h>

/* A calibration's state inside OUT; never an obstacle, and never touched here. */
#define OUTDIR_STATE ".wkvq-state"

struct outdir {
    char *final;  /* real path of the directory to be */
    char *stage;  /* OUT.tmp.TAG beside it, or OUT/.wkvq.tmp.TAG */
    char *tmp;    /* stage/data, where it is filled */
    bool inside;  /* move file by file */
    bool replace; /* an artifact is in final */
};

/* Check that out_dir may be written (it is missing, empty, or an artifact of nothing but
 * its manifest's files and force is set: ERR_USAGE otherwise), finish or remove what killed
 * processes of this host left there, and make the staging directory. Errors: ERR_USAGE
 * where this user cannot write, or out_dir is a dangling link; ERR_IO. */
enum err outdir_open(struct outdir *out, const char *out_dir, bool force);
/* Finish or remove what killed processes of this host left there; outdir_open and
 * outdir_probe begin with it. For who wants to read what is in out_dir before. */
enum err outdir_recover(const char *out_dir);
/* Would outdir_open and outdir_commit work? The staging directory is made and removed, and
 * missing parents are not made. Errors as for outdir_open. */
enum err outdir_probe(const char *out_dir, bool force);
/* Put the files in place, durably. Whatever the result, d is released; on error the staging
 * directory is removed and what was in out_dir is there again. If the disk refuses that,
 * too, the staging directory keeps it, and outdir_recover moves it back. */
enum err outdir_commit(struct outdir *d);
/* Remove the staging directory. Accepts a zeroed one. */
void outdir_abort(struct outdir *d);

/* Remove an artifact's files from a directory, and the directory if nothing else is in it.
 * Missing is fine. */
enum err outdir_remove(const char *dir);
/* The real path of out_dir, in a fresh string; what is missing keeps its names below the
 * real path of the nearest directory that exists. Errors: ERR_USAGE for an empty name, a
 * dangling link, and a file in a directory's place. */
enum err outdir_resolve(char **out, const char *out_dir);
/* Where a state that belongs to out_dir goes by default, release with mem_free: OUT.state
 * beside it, or OUT/.wkvq-state where OUT is a mount point or its parent is not writable.
 */
enum err outdir_state(char **out, const char *out_dir);

#endif
