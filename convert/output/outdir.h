/* SPDX-License-Identifier: MIT
 *
 * A directory that appears under its name only when it is complete. It is filled in a
 * staging directory of this process and then renamed. A rename over OUT is not always
 * possible: OUT may be a mount point, the working directory, or in a parent that is not
 * writable. Then the staging directory is inside OUT. The files move one by one, the
 * manifest last, and a reader refuses a directory without its manifest. docs/security.md
 * says what may be replaced and removed. */
#ifndef WKVQ_OUTDIR_H
#define WKVQ_OUTDIR_H

#include "kernels/base/error.h"

#include <stdbool.h>

/* The state of a calibration inside OUT. It is accepted in any output directory, and these
 * functions never touch it. */
#define OUTDIR_STATE ".wkvq-state"

/* The model card of an export. It is not a file of an artifact: a person may have written
 * one there, so it is never removed with an artifact. */
#define OUTDIR_CARD "README.md"

struct outdir {
    char *final;  /* real path of the output directory */
    char *stage;  /* OUT.tmp.TAG beside it, or OUT/.wkvq.tmp.TAG */
    char *tmp;    /* stage/data, which the caller fills */
    bool inside;  /* files are moved one by one */
    bool replace; /* final is an artifact to replace */
};

/* What happens to an artifact in the output directory. */
enum outdir_policy {
    OUTDIR_KEEP,    /* it is refused, and the message names --force */
    OUTDIR_REPLACE, /* it is replaced */
    OUTDIR_NEW      /* it is refused by a command that has no --force */
};

/* Creates the staging directory for out_dir, which must be missing or empty, or, with
 * OUTDIR_REPLACE, an artifact with only the files of its manifest. Before, it finishes or removes
 * what killed processes of this host left there. Errors: ERR_USAGE for any other out_dir, a
 * place that this user cannot write, and a dangling link; ERR_IO, ERR_MEMORY. */
enum err outdir_open(struct outdir *out, const char *out_dir, enum outdir_policy policy);
/* Writes the model card into the staging directory. d must not replace an artifact.
 * ERR_IO. */
enum err outdir_write_card(const struct outdir *d, const char *text);
/* Finishes or removes what killed processes of this host left there, so that out_dir can be
 * read. outdir_open() and outdir_probe() begin with it. */
enum err outdir_recover(const char *out_dir);
/* Returns what outdir_open() and outdir_commit() would return. The staging directory is
 * created and removed; missing parents are not created. */
enum err outdir_probe(const char *out_dir, enum outdir_policy policy);
/* Puts the files in place, durably, and releases d whatever the result. On error the staging
 * directory is removed and out_dir has its previous content. If the disk refuses that too,
 * the staging directory keeps it, and outdir_recover() moves it back. */
enum err outdir_commit(struct outdir *d);
/* Removes the staging directory. d may be zeroed. */
void outdir_abort(struct outdir *d);

/* Removes an artifact's files from a directory, and the directory if it is empty then. A
 * missing directory is no error. */
enum err outdir_remove(const char *dir);
/* Returns the real path of out_dir in a fresh string. What is missing keeps its names below
 * the real path of the nearest directory that exists. Errors: ERR_USAGE for an empty name, a
 * dangling link, and a file in a directory's place. */
enum err outdir_resolve(char **out, const char *out_dir);
/* Returns the default place of a state that belongs to out_dir: OUT.state beside it, or
 * OUT/.wkvq-state if OUT is a mount point or its parent is not writable. The caller frees
 * *out with mem_free(). */
enum err outdir_state(char **out, const char *out_dir);

#endif
