/* SPDX-License-Identifier: MIT */
#include "tools/cli/cure.h"

#include "kernels/base/error.h"

#include <string.h>

/* The words with which messages say what to do. */
static const char *const verbs[] = {
    "add",   "allow",  "ask",    "calibrate", "change",   "check", "choose", "close",
    "copy",  "cut",    "delete", "did",       "download", "free",  "give",   "install",
    "leave", "let",    "make",   "move",      "name",     "omit",  "put",    "quantize",
    "raise", "refine", "remove", "rename",    "run",      "set",   "split",  "start",
    "try",   "use",    "wait",   "write",     "`wkvq",
};

static bool begins_with_verb(const char *text)
{
    static const char *const skipped[] = {"then ", "please ", "or "};
    for (size_t i = 0; i < ARRAY_LEN(skipped); i++)
        if (!strncmp(text, skipped[i], strlen(skipped[i])))
            text += strlen(skipped[i]);
    for (size_t i = 0; i < ARRAY_LEN(verbs); i++) {
        const size_t n = strlen(verbs[i]);
        if (!strncmp(text, verbs[i], n) && text[n] == ' ')
            return true;
    }
    return false;
}

bool cure_is_in(const char *text)
{
    for (const char *p = text; (p = strpbrk(p, ";:")); p++)
        if (p[1] == ' ' && begins_with_verb(p + 2))
            return true;
    return false;
}
