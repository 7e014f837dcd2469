/* SPDX-License-Identifier: MIT
 *
 * Pages without network: everything in one file, light and dark as the reader's system. */
#ifndef WKVQ_HTML_H
#define WKVQ_HTML_H

#include <stdio.h>

void html_begin(FILE *f, const char *title);
void html_end(FILE *f);
/* Text with what HTML would read as markup escaped; control characters become spaces. */
void html_text(FILE *f, const char *text);
/* <td> with text, or with a figure; a value that is not finite is a dash. */
void html_cell(FILE *f, const char *text);
void html_number(FILE *f, int digits, double x);
/* <table> in a box that scrolls on narrow screens, with its heads as HTML "#|<Name|Size":
 * "<" is in front of columns of words, the others are aligned as figures. */
void html_table(FILE *f, const char *heads);
void html_table_end(FILE *f);
/* An SVG with what it shows for those who cannot see it, and its caption. */
void html_picture(FILE *f, const char *svg, const char *caption);

#endif
