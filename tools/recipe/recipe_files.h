/* SPDX-License-Identifier: MIT
 *
 * The list of calibration texts. Without shares, the files are joined to one text. With
 * shares, each is a text of its own, from which windows are drawn in proportion. */
#ifndef WKVQ_RECIPE_FILES_H
#define WKVQ_RECIPE_FILES_H

#include "kernels/base/error.h"

#include <stdbool.h>

struct yaml;

struct recipe_files {
    char **path;   /* [n]; paths and lists are owned */
    double *share; /* [n] relative to each other; negative: none. NULL: none at all */
    int n;
};

/* Adds a file without a share. */
enum err recipe_files_add(struct recipe_files *files, const char *path);
/* Adds FILE or FILE:SHARE. A file whose own name ends so is taken as it is. */
enum err recipe_files_add_typed(struct recipe_files *files, const char *text);
/* Adds FILE, FILE:SHARE or {file: NAME, share: NUMBER}. ERR_USAGE; where starts the message. */
enum err recipe_files_add_yaml(struct recipe_files *files, const struct yaml *node,
                               const char *where);
/* Initializes to. Clear it whatever the result. */
enum err recipe_files_copy(struct recipe_files *to, const struct recipe_files *from);
void recipe_files_clear(struct recipe_files *files); /* accepts a zeroed one */

/* Refuses a list in which some files lack a share, or whose shares sum to 0. ERR_USAGE;
 * where starts the message. */
enum err recipe_files_check(const struct recipe_files *files, const char *where);
/* Returns whether the files have shares. */
bool recipe_files_shared(const struct recipe_files *files);
double recipe_files_share(const struct recipe_files *files, int i); /* negative: none */
/* Returns whether both lists are tokenized alike; values of shares do not matter. */
bool recipe_files_same(const struct recipe_files *a, const struct recipe_files *b);
/* Writes file i as recipe_files_add_typed() reads it. Release *out with mem_free. */
enum err recipe_files_typed(char **out, const struct recipe_files *files, int i);

#endif
