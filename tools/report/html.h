/* SPDX-License-Identifier: MIT
 *
 * HTML pages that need no network: one file each, light or dark as the reader's system. */
#ifndef WKVQ_HTML_H
#define WKVQ_HTML_H

#include <stdio.h>

void html_begin(FILE *f, const char *title);
void html_end(FILE *f);
/* Writes text with HTML markup escaped; control characters become spaces. */
void html_text(FILE *f, const char *text);
/* Write <td> with a text or a figure; a value that is not finite becomes a dash. */
void html_cell(FILE *f, const char *text);
void html_number(FILE *f, int digits, double x);
/* Write <table> in a box that scrolls on narrow screens. Heads are HTML such as
 * "#|<Name|Size": "<" marks columns of words, the others are aligned as figures. */
void html_table(FILE *f, const char *heads);
void html_table_end(FILE *f);
/* Writes an SVG with a description for screen readers, and its caption. */
void html_picture(FILE *f, const char *svg, const char *caption);

#endif
