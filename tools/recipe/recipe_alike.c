/* SPDX-License-Identifier: MIT
 *
 * Keys that a word may mean which names none. */
#include "tools/cli/nearest.h"
#include "tools/recipe/recipe.h"

#include <stdio.h>
#include <string.h>

#define WORD_MAX 64

static const char *last_part(const struct recipe_key *k)
{
    return strchr(k->name, '.') + 1;
}

/* Copies text with '_' for the other characters that separate words. */
static void copy_word(char out[WORD_MAX], const char *text)
{
    snprintf(out, WORD_MAX, "%s", text);
    for (char *p = out; *p; p++)
        if (*p == '-' || *p == '.')
            *p = '_';
}

static bool means(const struct recipe_key *k, const char *word)
{
    char whole[WORD_MAX];
    copy_word(whole, k->name);
    return !strcmp(last_part(k), word) || !strcmp(whole, word);
}

int recipe_alike(const struct recipe_key *found[RECIPE_ALIKE_MAX], const char *text,
                 bool misspelt)
{
    char word[WORD_MAX];
    struct nearest best = {0};
    int n = 0;
    copy_word(word, text);
    for (int i = 0; misspelt && i < recipe_n_keys; i++)
        nearest_consider(&best, word, last_part(&recipe_key[i]));
    for (int i = 0; i < recipe_n_keys && n < RECIPE_ALIKE_MAX; i++)
        if (means(&recipe_key[i], best.word ? best.word : word))
            found[n++] = &recipe_key[i];
    return n;
}

void recipe_alike_text(char *out, size_t size, const struct recipe_key *const *found, int n)
{
    size_t used = 0;
    *out = '\0';
    for (int i = 0; i < n && used < size; i++)
        used += (size_t)snprintf(out + used, size - used, "%s'%s'",
                                 !i          ? ""
                                 : i < n - 1 ? ", "
                                             : " or ",
                                 found[i]->name);
}

void recipe_set_text(char *out, size_t size, const struct recipe_key *const *found, int n,
                     const char *value)
{
    const char *own = found[0]->kind == KEY_BOOL ? "true" : value ? value : "VALUE";
    size_t used = (size_t)snprintf(out, size, "--set %s=%s", found[0]->name, own);
    for (int i = 1; i < n && used < size; i++)
        used += (size_t)snprintf(out + used, size - used, "%s%s%s", i > 1 ? ", " : " (or ",
                                 found[i]->name, i < n - 1 ? "" : ")");
}
