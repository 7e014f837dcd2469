/* SPDX-License-Identifier: MIT
 *
 * The output of a job that ends with a verified artifact: `quantize`, and `refine` of an artifact.
 * The state beside it makes the job resumable, and is removed at the end. */
#ifndef WKVQ_FINISH_H
#define WKVQ_FINISH_H

#include "convert/output/outdir.h"
#include "tools/pipeline/stages.h"

struct output {
    /* The caller sets these; strings are borrowed. */
    const char *dir, *given_state; /* of the artifact; --state, NULL: the default place */
    bool force, keep_state, json;
    bool plan;    /* nothing is written, so dir may be NULL */
    double start; /* time(), from which the report counts its seconds */
    char
        *state; /* directory of the state, set by output_place; release with mem_free; NULL:
                   * a plan without a dir */
    /* Set by output_check. */
    bool replace;  /* --force, or the artifact was written from this very state */
    bool finished; /* the artifact is verified, and a killed run was removing the state */
    bool no_state; /* finished, and the state's directory is empty */
};

/* Determines the state's directory. ERR_USAGE: none can be, or it is inside the artifact's. */
enum err output_place(struct output *o);
/* outdir_probe(), for which a signal waits. */
enum err output_probe(const char *out_dir, enum outdir_policy policy);
/* Checks that artifact and state can be written, before hours of work. It tidies what killed runs
 * left and tries to write, so of several ranks only rank 0 may call it. ERR_USAGE. */
enum err output_check(struct output *o);
/* Writes "one is inside the other" of two directories, real paths compared. ERR_USAGE as for
 * outdir_resolve. */
enum err output_overlaps(bool *yes, const char *a, const char *b);
/* Converts the finished state unless a killed run was removing it already, verifies, prints the
 * report and removes the state. ERR_VERIFY: the state is kept. */
enum err output_finish(struct output *o, struct job *j, struct state **s);
/* Finishes a job whose state is already removed (no_state). The artifact itself tells which job
 * it belongs to. ERR_USAGE if that is another one. */
enum err output_finish_without_state(struct output *o, struct job *j);

#endif
