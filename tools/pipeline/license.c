/* SPDX-License-Identifier: MIT */
#include "tools/pipeline/license.h"

#include "data/yaml.h"
#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"

#include <string.h>

#define CARD_MAX ((size_t)16 << 20)
#define LICENSE_MAX 100

static bool is_identifier(const char *text)
{
    const size_t n = strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789.-");
    return n && !text[n] && n <= LICENSE_MAX;
}

/* Returns the front matter of a card, without its two fences, or NULL; *n is its size. */
static const char *front_matter(const char *card, size_t *n)
{
    static const char fence[] = "---\n";
    const char *begin = card + strlen(fence);
    if (strncmp(card, fence, strlen(fence)))
        return NULL;
    const char *end = strstr(card, "\n---");
    *n = end ? (size_t)(end + 1 - begin) : 0;
    return end && end + 1 > begin ? begin : NULL;
}

static enum err license_in(char **out, const char *card, const char *path)
{
    struct yaml *y = NULL;
    size_t n;
    const char *text = front_matter(card, &n);
    if (!text)
        return OK;
    TRY(yaml_parse_text(&y, text, n, path));
    const struct yaml *license = y->kind == YAML_MAP ? yaml_child(y, "license") : NULL;
    enum err err = OK;
    if (license && license->kind == YAML_TEXT && is_identifier(license->text))
        err = mem_strdup(out, license->text);
    yaml_free(&y);
    return err;
}

enum err checkpoint_license(char **out, const char *model_dir)
{
    char *path = NULL, *card = NULL;
    size_t n;
    *out = NULL;
    TRY(file_join(&path, model_dir, "README.md"));
    enum err err = file_is_regular(path) ? file_read_all(&card, &n, path, CARD_MAX) : OK;
    if (!err && card)
        err = license_in(out, card, path);
    if (err && err != ERR_MEMORY) {
        err_clear(); /* the card is for people; what it says elsewhere does not matter */
        err = OK;
    }
    mem_free(card);
    mem_free(path);
    return err;
}
