/* SPDX-License-Identifier: MIT
 *
 * HTML pages that need no network and no other file. Every function that takes a text
 * escapes it, unless it says HTML. */
#ifndef WKVQ_HTML_H
#define WKVQ_HTML_H

#include <stddef.h>
#include <stdio.h>

/* Writes everything before the page's content, with its title as a heading. */
void html_begin(FILE *f, const char *title);
void html_end(FILE *f);

/* Writes text; control characters become spaces. */
void html_text(FILE *f, const char *text);
void html_text_bytes(FILE *f, const char *text, size_t n);
/* Write <td> with a text or a figure; a value that is not finite becomes a dash. */
void html_cell(FILE *f, const char *text);
void html_number(FILE *f, int digits, double x);
/* Does the same with a sign. */
void html_signed(FILE *f, int digits, double x);
/* Do the same with an exponent; with significant digits in whatever form is shorter. */
void html_scientific(FILE *f, int digits, double x);
void html_short(FILE *f, int digits, double x);
/* Writes the <th> that names a row. */
void html_row_name(FILE *f, const char *text);

/* Write <table> in a box that scrolls on narrow screens. caption: for screen readers.
 * Heads are HTML such as "<Name|Size": "<" marks columns of words, the others are aligned as
 * figures. */
void html_table(FILE *f, const char *caption, const char *heads);
void html_table_end(FILE *f);

/* Write a part that is folded until the reader opens it. */
void html_fold(FILE *f, const char *summary);
void html_fold_end(FILE *f);

/* A picture as SVG. */
struct html_picture {
    const char *wide;   /* NULL: it could not be drawn, which the page says in its place */
    const char *narrow; /* for screens of a phone; NULL: wide, scrolled */
    const char *alt;    /* what it shows, for who cannot see it */
    const char *caption;
};
/* Write a <figure>. What stands between belongs to it, such as a folded table. */
void html_figure(FILE *f, const struct html_picture *p);
void html_figure_end(FILE *f);

#endif
