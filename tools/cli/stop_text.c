/* SPDX-License-Identifier: MIT */
#include "tools/cli/stop_text.h"

#include <string.h>

size_t stop_text_settled(const char *text, size_t n)
{
    static const char unknown[] = "\xef\xbf\xbd";
    while (n >= 3 && !memcmp(text + n - 3, unknown, 3))
        n -= 3;
    return n;
}

bool stop_text_find(size_t *at, const char *text, size_t n, size_t from,
                    const struct text_list *stop)
{
    size_t first = n;
    for (int i = 0; i < stop->n && from < n; i++) {
        const char *hit =
            memmem(text + from, n - from, stop->item[i], strlen(stop->item[i]));
        if (hit && (size_t)(hit - text) < first)
            first = (size_t)(hit - text);
    }
    if (first == n)
        return false;
    *at = first;
    return true;
}

/* Returns the length of the longest end of text [n] that is a proper prefix of `stop`. */
static size_t begun(const char *text, size_t n, const char *stop)
{
    const size_t length = strlen(stop);
    for (size_t k = length - 1 < n ? length - 1 : n; k > 0; k--)
        if (!memcmp(text + n - k, stop, k))
            return k;
    return 0;
}

size_t stop_text_safe(const char *text, size_t n, const struct text_list *stop)
{
    size_t held = 0;
    for (int i = 0; i < stop->n; i++) {
        const size_t k = begun(text, n, stop->item[i]);
        held = k > held ? k : held;
    }
    return n - held;
}
