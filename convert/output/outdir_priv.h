/* SPDX-License-Identifier: MIT
 *
 * Private to convert/output: outdir.c (what may be written), outdir_place.c (where), and
 * outdir_stage.c (the staging directory and the move). */
#ifndef WKVQ_OUTDIR_PRIV_H
#define WKVQ_OUTDIR_PRIV_H

#include "convert/output/outdir.h"

#define STAGE_INSIDE FILE_STAGE_INSIDE

/* --- outdir_place.c ----------------------------------------------------------------- */

/* Sets *yes if files must be moved into final one by one. final: a directory, or
 * missing. */
enum err outdir_needs_inside(bool *yes, const char *final);

/* --- outdir_stage.c ----------------------------------------------------------------- */

/* Creates the staging directory, its mark and its data directory. */
enum err stage_make(struct outdir *d);
/* Moves the files of the stage into d->final. On error final has its previous content. */
enum err stage_move_in(const struct outdir *d);
/* Removes a writer's files from the stage, and the stage itself. Other files are kept, with
 * a warning. */
enum err stage_remove(const char *stage);
/* Finishes or removes the stages that dead processes of this host left for final. Errors:
 * ERR_USAGE if a running process works inside final. */
enum err stage_tidy(const char *final);
/* Returns true if entry is the name of a stage of this program inside OUT. */
bool stage_inside_name(const char *entry);

#endif
