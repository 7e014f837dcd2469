/* SPDX-License-Identifier: MIT
 *
 * Texts about the program as a whole, printed from the table of commands. */
#ifndef WKVQ_HELP_H
#define WKVQ_HELP_H

#include <stdbool.h>
#include <stdio.h>

void help_print(FILE *f);
/* Does what --help, --version and the like say. false: word is none of them. */
bool help_print_about(const char *word);
/* Returns the one that is closest to a misspelt word, or NULL. */
const char *help_nearest_about(const char *word);

#endif
