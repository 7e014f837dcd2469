/* SPDX-License-Identifier: MIT
 *
 * Texts about the program as a whole, printed from the table of commands. */
#ifndef WKVQ_HELP_H
#define WKVQ_HELP_H

#include <stdio.h>

void help_print(FILE *f);
void help_print_version(void);
void help_print_man(void);        /* man page source of wkvq(1) */
void help_print_completion(void); /* bash completion script */

#endif
