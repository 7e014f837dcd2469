/* SPDX-License-Identifier: MIT */
#include "tools/report/html.h"

#include "tools/report/html_style.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

void html_begin(FILE *f, const char *title)
{
    fputs("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
          "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
          "<meta name=\"color-scheme\" content=\"light dark\">\n<title>",
          f);
    html_text(f, title);
    fprintf(f, "</title>\n<style>%s</style>\n</head>\n<body>\n<main>\n<h1>", html_style);
    html_text(f, title);
    fputs("</h1>\n", f);
}

void html_end(FILE *f)
{
    fputs("</main>\n</body>\n</html>\n", f);
}

void html_text(FILE *f, const char *text)
{
    html_text_bytes(f, text, strlen(text));
}

void html_text_bytes(FILE *f, const char *text, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const unsigned char c = (unsigned char)text[i];
        switch (c) {
        case '&':
            fputs("&amp;", f);
            break;
        case '<':
            fputs("&lt;", f);
            break;
        case '>':
            fputs("&gt;", f);
            break;
        case '"':
            fputs("&quot;", f);
            break;
        case '\'':
            fputs("&#39;", f);
            break;
        default:
            fputc(c < 32 && c != '\n' ? ' ' : c, f);
        }
    }
}

void html_cell(FILE *f, const char *text)
{
    fputs("<td>", f);
    html_text(f, text);
    fputs("</td>", f);
}

static void put_number(FILE *f, const char *format, int digits, double x)
{
    fputs("<td class=\"n\">", f);
    if (isfinite(x))
        fprintf(f, format, digits, x);
    else
        fputs("&ndash;", f);
    fputs("</td>", f);
}

void html_number(FILE *f, int digits, double x)
{
    put_number(f, "%.*f", digits, x);
}

void html_signed(FILE *f, int digits, double x)
{
    put_number(f, "%+.*f", digits, x);
}

void html_scientific(FILE *f, int digits, double x)
{
    put_number(f, "%.*e", digits, x);
}

void html_short(FILE *f, int digits, double x)
{
    put_number(f, "%.*g", digits, x);
}

void html_row_name(FILE *f, const char *text)
{
    fputs("<th scope=\"row\">", f);
    html_text(f, text);
    fputs("</th>", f);
}

void html_table(FILE *f, const char *caption, const char *heads)
{
    fputs("<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"", f);
    html_text(f, caption);
    fputs("\"><table>\n<thead><tr>", f);
    for (const char *p = heads; p;) {
        const char *bar = strchr(p, '|');
        const bool words = *p == '<';
        p += words;
        fprintf(f, "<th scope=\"col\"%s>%.*s</th>", words ? "" : " class=\"n\"",
                (int)(bar ? bar - p : (long)strlen(p)), p);
        p = bar ? bar + 1 : NULL;
    }
    fputs("</tr></thead>\n<tbody>\n", f);
}

void html_table_end(FILE *f)
{
    fputs("</tbody>\n</table></div>\n", f);
}

void html_fold(FILE *f, const char *summary)
{
    fputs("<details>\n<summary>", f);
    html_text(f, summary);
    fputs("</summary>\n", f);
}

void html_fold_end(FILE *f)
{
    fputs("</details>\n", f);
}

static void put_svg(FILE *f, const char *width, const char *svg, const char *alt)
{
    fprintf(f, "<div class=\"%s\" role=\"img\" aria-label=\"", width);
    html_text(f, alt);
    fprintf(f, "\">\n%s\n</div>\n", svg);
}

void html_figure(FILE *f, const struct html_picture *p)
{
    fprintf(f, "<figure class=\"%s\">\n", p->narrow ? "both" : "one");
    if (p->wide)
        put_svg(f, "wide", p->wide, p->alt);
    else
        fputs(
            "<p class=\"soft\">No picture: gnuplot failed where this page was made.</p>\n",
            f);
    if (p->narrow)
        put_svg(f, "narrow", p->narrow, p->alt);
    fputs("<figcaption>", f);
    html_text(f, p->caption);
    fputs("</figcaption>\n", f);
}

void html_figure_end(FILE *f)
{
    fputs("</figure>\n", f);
}
