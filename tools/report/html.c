/* SPDX-License-Identifier: MIT */
#include "tools/report/html.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

static const char style[] =
    ":root{color-scheme:light "
    "dark;--ink:#1b1f24;--paper:#fff;--soft:#5c6670;--line:#d5dae0;"
    "--shade:#f4f6f8;--link:#0b5fad}"
    "@media(prefers-color-scheme:dark){:root{--ink:#e4e7ea;--paper:#14171a;--soft:#9aa4ae;"
    "--line:#353b42;--shade:#1d2226;--link:#7db8f0}"
    "figure svg{filter:invert(1) hue-rotate(180deg)}}"
    "*{box-sizing:border-box}"
    "body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,"
    "sans-serif}"
    "main{max-width:72rem;margin:0 auto;padding:1.5rem 1rem 4rem}"
    "h1{font-size:1.6rem;line-height:1.2;margin:0 0 .5rem}"
    "h2{font-size:1.2rem;margin:2.5rem 0 .5rem;border-bottom:1px solid var(--line);"
    "padding-bottom:.25rem}"
    "p{max-width:46rem}.soft,figcaption{color:var(--soft);font-size:.9rem}"
    ".scroll{overflow-x:auto;margin:.75rem 0}"
    "table{border-collapse:collapse;font-size:.92rem;min-width:100%}"
    "th,td{padding:.35rem .6rem;border-bottom:1px solid var(--line);text-align:left;"
    "vertical-align:top}"
    "th{font-weight:600;white-space:nowrap;border-bottom-width:2px}"
    "th.n,td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}"
    "td.n:first-child,th.n:first-child{width:1%;padding-left:0}"
    "td:nth-child(2){min-width:8.5rem}"
    "@media(max-width:40rem){th,td{padding:.3rem .4rem}table{font-size:.85rem}}"
    "tr:hover td{background:var(--shade)}"
    "td.set{color:var(--soft);overflow-wrap:anywhere;min-width:10rem}"
    ".pictures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),"
    "1fr));gap:1rem}"
    "figure{margin:.5rem 0;break-inside:avoid}"
    "figure svg{width:100%;height:auto;display:block}"
    "main>figure{max-width:46rem}"
    "pre{background:var(--shade);border:1px solid var(--line);border-radius:4px;"
    "padding:.6rem .8rem;font-size:.82rem;white-space:pre-wrap;overflow-wrap:anywhere;"
    "margin:.25rem 0 1rem}"
    "h3{font-size:1rem;margin:1rem 0 0}"
    "@media print{:root{--ink:#000;--paper:#fff;--soft:#444;--line:#bbb;--shade:#fff}"
    "figure svg{filter:none}body{font-size:10pt}main{max-width:none;padding:0}"
    ".scroll{overflow:visible}table{font-size:8pt}th{white-space:normal}"
    "tr,figure,pre{break-inside:avoid}h2,h3{break-after:avoid}}";

void html_begin(FILE *f, const char *title)
{
    fputs("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
          "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
          "<meta name=\"color-scheme\" content=\"light dark\">\n<title>",
          f);
    html_text(f, title);
    fprintf(f, "</title>\n<style>%s</style>\n</head>\n<body>\n<main>\n<h1>", style);
    html_text(f, title);
    fputs("</h1>\n", f);
}

void html_end(FILE *f)
{
    fputs("</main>\n</body>\n</html>\n", f);
}

void html_text(FILE *f, const char *text)
{
    for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
        switch (*p) {
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
            fputc(*p < 32 && *p != '\n' ? ' ' : *p, f);
        }
    }
}

void html_cell(FILE *f, const char *text)
{
    fputs("<td>", f);
    html_text(f, text);
    fputs("</td>", f);
}

void html_number(FILE *f, int digits, double x)
{
    if (isfinite(x))
        fprintf(f, "<td class=\"n\">%.*f</td>", digits, x);
    else
        fputs("<td class=\"n\">&ndash;</td>", f);
}

void html_table(FILE *f, const char *heads)
{
    fputs("<div class=\"scroll\"><table>\n<thead><tr>", f);
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

void html_picture(FILE *f, const char *svg, const char *caption)
{
    fputs("<figure role=\"img\" aria-label=\"", f);
    html_text(f, caption);
    fprintf(f, "\">\n%s\n<figcaption>", svg);
    html_text(f, caption);
    fputs("</figcaption>\n</figure>\n", f);
}
