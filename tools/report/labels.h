/* SPDX-License-Identifier: MIT
 *
 * Places the names of points in a picture so that no name covers another name or a point.
 * Pure functions. Lengths are in units of the picture; y counts downward. */
#ifndef WKVQ_LABELS_H
#define WKVQ_LABELS_H

#include <stdbool.h>

#define LABEL_SIZE 12.0   /* font size */
#define LABEL_HEIGHT 15.0 /* of a line */
#define LABEL_MAX 40      /* characters; longer names are cut, with an ellipsis */

struct box {
    double left, top, right, bottom;
};

struct label {
    const char *text; /* borrowed, UTF-8; NULL: a point without a name */
    double x, y;      /* the point */
    struct box box;   /* where the name is, if it is placed */
    bool placed;      /* false: there was no room */
};

/* Returns the width of a text's first LABEL_MAX characters in a common sans-serif font. It
 * is estimated from the letters, rather too wide than too narrow. */
double label_width(const char *text);
/* Returns how many bytes of text to show: all, or those of LABEL_MAX - 1 characters. */
int label_bytes(const char *text);

/* Places names inside area, in their order. A name never covers another name, a named point
 * (of a radius of 4 units) or the line from a name to its point. Points without a name, such
 * as those of a curve, are avoided where another place is near. */
void labels_place(struct label *l, int n, struct box area);

#endif
