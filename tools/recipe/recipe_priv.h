/* SPDX-License-Identifier: MIT
 *
 * What the sources of a recipe share. Private to tools/recipe. */
#ifndef WKVQ_RECIPE_PRIV_H
#define WKVQ_RECIPE_PRIV_H

#include "tools/recipe/recipe.h"

/* Returns the key of this name, such as "weights.bits". NULL: there is none. */
const struct recipe_key *recipe_find_key(const char *name);
/* Sets a key from text, and adds to a list of files. Errors as for recipe_set(). */
enum err recipe_set_key(struct recipe *r, const struct recipe_key *k, const char *text,
                        const char *where);
/* Returns ERR_USAGE, with the closest known key. */
enum err recipe_unknown_key(const char *name, const char *where);
/* Loads a file as recipe_load_yaml() does. preset: another preset replaces the file's own. */
enum err recipe_read_yaml(struct recipe *r, const char *path, bool preset);
/* Returns the name of preset i from 0; NULL: there are not that many. */
const char *recipe_preset_name(size_t i);

#endif
