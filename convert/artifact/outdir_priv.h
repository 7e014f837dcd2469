/* SPDX-License-Identifier: MIT
 *
 * Private to convert/artifact: outdir.c (what may be written), outdir_place.c (where), and
 * outdir_stage.c (the staging directory and the move). */
#ifndef WKVQ_OUTDIR_PRIV_H
#define WKVQ_OUTDIR_PRIV_H

#include "convert/artifact/outdir.h"

#define STAGE_INSIDE ".wkvq" /* OUT/.wkvq.tmp.TAG */

/* --- outdir_place.c ----------------------------------------------------------------- */

/* Must files be moved into final one by one? final: a directory, or missing. */
enum err outdir_needs_inside(bool *yes, const char *final);

/* --- outdir_stage.c ----------------------------------------------------------------- */

/* Make the staging directory, its mark and its data directory. */
enum err stage_make(struct outdir *d);
/* Move the files of the stage into d->final. On error everything is as before. */
enum err stage_move_in(const struct outdir *d);
/* Remove what a writer left in the stage, and the stage itself. Files that no writer makes
 * stay, with a warning. */
enum err stage_remove(const char *stage);
/* Finish or remove the stages that dead processes of this host left for final. Errors:
 * ERR_USAGE when a living process works inside final. */
enum err stage_tidy(const char *final);
/* Is entry the name of a stage inside OUT, made by this program? */
bool stage_inside_name(const char *entry);

#endif
