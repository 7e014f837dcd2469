/* SPDX-License-Identifier: MIT */
#include "tools/report/labels.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

#define POINT 4.0    /* radius that names keep free around a point */
#define NEAR 7.0     /* distance from a point to a name beside it */
#define STEP 8.0     /* between the distances that are tried */
#define DISTANCES 36 /* how many are tried */
#define DIRECTIONS 24
/* What is avoided, in units of distance: a line over another point, name or curve, and a
 * name on a curve. */
#define OVER_POINT 90
#define OVER_NAME 150
#define OVER_CURVE 8
#define ON_CURVE 12
#define CHECKS 16 /* places on a line that are compared with names */

/* --- sizes of texts ----------------------------------------------------------------- */

static bool is_rest(char c)
{
    return ((unsigned char)c & 0xc0) == 0x80; /* of a UTF-8 character */
}

static double char_width(char c)
{
    if ((unsigned char)c >= 0x80)
        return 1;
    if (strchr("iljtf.,:;'|! ()[]-", c))
        return 0.36;
    if (strchr("mwMW@%", c))
        return 0.92;
    return c >= 'A' && c <= 'Z' ? 0.72 : 0.6;
}

int label_bytes(const char *text)
{
    int chars = 0, cut = 0, i = 0;
    for (; text[i]; i++) {
        if (is_rest(text[i]))
            continue;
        if (chars++ == LABEL_MAX - 1)
            cut = i;
    }
    return chars > LABEL_MAX ? cut : i;
}

double label_width(const char *text)
{
    const int n = label_bytes(text);
    double width = text[n] ? 1 : 0; /* the ellipsis */
    for (int i = 0; i < n; i++)
        width += is_rest(text[i]) ? 0 : char_width(text[i]);
    return LABEL_SIZE * width;
}

/* --- places ------------------------------------------------------------------------- */

static bool overlap(struct box a, struct box b)
{
    return a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
}

static bool inside(struct box a, struct box area)
{
    return a.left >= area.left && a.right <= area.right && a.top >= area.top &&
           a.bottom <= area.bottom;
}

static struct box around(double x, double y, double half)
{
    return (struct box){x - half, y - half, x + half, y + half};
}

static double clamp(double x, double lo, double hi)
{
    return x < lo ? lo : x > hi ? hi : x;
}

/* Returns whether the line from a placed or tried name to its point crosses a box. */
static bool crosses(const struct label *l, struct box name, struct box other)
{
    const double x = clamp(l->x, name.left, name.right);
    const double y = clamp(l->y, name.top, name.bottom);
    for (int i = 0; i <= CHECKS; i++) {
        const double s = (double)i / CHECKS;
        const double px = l->x + s * (x - l->x), py = l->y + s * (y - l->y);
        if (px > other.left && px < other.right && py > other.top && py < other.bottom)
            return true;
    }
    return false;
}

/* Returns whether a point lies apart from that of label i, so that a line can miss it. */
static bool apart(const struct label *l, int i, int k)
{
    return hypot(l[k].x - l[i].x, l[k].y - l[i].y) > 2 * POINT;
}

/* Returns what a place costs in units of distance, or INFINITY if a name there would cover
 * another name, a named point, or the line to one. */
static double cost_of(const struct label *l, int n, int i, struct box name)
{
    double cost = 0;
    for (int k = 0; k < n; k++) {
        const struct box point = around(l[k].x, l[k].y, POINT);
        if (overlap(name, point)) {
            if (l[k].text)
                return INFINITY;
            cost += ON_CURVE;
        }
        if (apart(l, i, k) && crosses(&l[i], name, point))
            cost += l[k].text ? OVER_POINT : OVER_CURVE;
        if (!l[k].placed)
            continue;
        if (overlap(name, l[k].box) || crosses(&l[k], l[k].box, name))
            return INFINITY;
        if (crosses(&l[i], name, l[k].box))
            cost += OVER_NAME;
    }
    return cost;
}

/* Returns the box whose nearest side is `away` from the point in a direction. */
static struct box tried(const struct label *l, double width, double away, double angle)
{
    const double c = cos(angle), s = sin(angle);
    const double x = l->x + (away + NEAR) * c +
                     0.5 * width *
                         (c > 0.3    ? 1
                          : c < -0.3 ? -1
                                     : 0);
    const double y = l->y + (away + NEAR + 0.5 * LABEL_HEIGHT * fabs(s)) * s;
    return (struct box){x - 0.5 * width, y - 0.5 * LABEL_HEIGHT, x + 0.5 * width,
                        y + 0.5 * LABEL_HEIGHT};
}

/* Finds the cheapest place. */
static void place(struct label *l, int n, int i, struct box area)
{
    const double width = label_width(l[i].text);
    double best = INFINITY;
    for (int d = 0; d < DISTANCES && d * STEP < best; d++)
        for (int a = 0; a < DIRECTIONS; a++) {
            /* to the right first, then alternately above and below */
            const int turn = (a + 1) / 2 * (a % 2 ? -1 : 1);
            const struct box name =
                tried(&l[i], width, d * STEP, turn * 2 * 3.14159265358979 / DIRECTIONS);
            const double cost =
                inside(name, area) ? d * STEP + cost_of(l, n, i, name) : INFINITY;
            if (cost < best) {
                best = cost;
                l[i].box = name;
            }
        }
    l[i].placed = isfinite(best);
}

void labels_place(struct label *l, int n, struct box area)
{
    for (int i = 0; i < n; i++)
        l[i].placed = false;
    for (int i = 0; i < n; i++)
        if (l[i].text)
            place(l, n, i, area);
}
