/* SPDX-License-Identifier: MIT */
#include "tools/cli/size.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Returns the bytes of a unit; 0: text is none. */
static double unit_of(const char *text)
{
    static const char letters[] = "kmgt";
    if (!*text)
        return 1;
    const char *at = strchr(letters, *text | 0x20);
    if (!at)
        return 0;
    const double power = (double)(at - letters + 1);
    if (!strcmp(text + 1, "B"))
        return pow(1000, power);
    return !text[1] || !strcmp(text + 1, "iB") ? pow(1024, power) : 0;
}

bool size_parse(uint64_t *out, const char *text)
{
    char *end;
    const double value = strtod(text, &end);
    if (end == text || !(value >= 0) || text[0] == '+' || text[0] == '-')
        return false;
    const double bytes = value * unit_of(end);
    if (unit_of(end) <= 0 || !(bytes < 0x1p63))
        return false;
    *out = (uint64_t)bytes;
    return true;
}

void size_wanted(char *out, size_t n, const char *text, double least, const char *also)
{
    uint64_t bytes;
    char floor_text[SIZE_TEXT];
    if (!size_parse(&bytes, text)) {
        snprintf(out, n,
                 "want %sa size in bytes, as in 512M or 8G (powers of 1024), 500MB or 5GB "
                 "(powers of 1000)",
                 also);
        return;
    }
    const int used = snprintf(out, n, "want %sa size of at least %s", also,
                              size_text(floor_text, least));
    /* Numbers without a unit: small ones were meant in gigabytes, larger ones in megabytes. */
    if (bytes && !text[strspn(text, "0123456789.")] && (size_t)used < n)
        snprintf(out + used, n - (size_t)used, "; did you mean %.20s%c?", text,
                 bytes < 1024 ? 'G' : 'M');
}

const char *size_text(char out[SIZE_TEXT], double bytes)
{
    if (bytes < 1e3)
        snprintf(out, SIZE_TEXT, "%.0f B", bytes);
    else if (bytes < 1e6)
        snprintf(out, SIZE_TEXT, "%.1f kB", 1e-3 * bytes);
    else if (bytes < 1e9)
        snprintf(out, SIZE_TEXT, "%.1f MB", 1e-6 * bytes);
    else
        snprintf(out, SIZE_TEXT, "%.2f GB", 1e-9 * bytes);
    return out;
}
