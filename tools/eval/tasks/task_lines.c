/* SPDX-License-Identifier: MIT */
#include "tools/eval/tasks/task_lines.h"

#include "kernels/base/file/file.h"
#include "kernels/base/file/lock.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "tools/cli/stop.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FILE_LIMIT ((size_t)4 << 30)
#define KEY_MAX 128

/* A question, and its line once that is known. */
struct entry {
    char *text; /* without a newline, owned; NULL: not known */
    uint32_t crc;
};

struct task_lines {
    const char *path; /* borrowed; NULL: no file */
    char *run, *real; /* real: path without links, if the file grows; else NULL */
    json_t *stored;   /* lines of path by key; those of questions are taken out */
    json_t *taken;    /* the line returned last */
    struct entry *entry;
    int64_t n, room, kept;
    struct lock lock;
    int fd;       /* for appending; -1: none */
    size_t flags; /* how lines are written */
};

/* --- lines of an earlier run -------------------------------------------------------- */

static void make_key(char out[KEY_MAX], const char *set, json_int_t question,
                     const char *crc)
{
    snprintf(out, KEY_MAX, "%.60s %lld %.8s", set, (long long)question, crc);
}

static enum err refuse_other(const struct task_lines *l, int64_t number)
{
    FAIL(ERR_MISMATCH,
         "%s: line %" PRId64 " is not a result of this task, so the file is not continued; "
         "name another file, or delete this one",
         l->path, number);
}

/* Keeps one line of the file. */
static enum err store(struct task_lines *l, const char *p, size_t n, int64_t number)
{
    char key[KEY_MAX];
    const char *run, *set, *crc;
    json_int_t question;
    json_error_t why;
    json_t *o = json_loadb(p, n, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &why);
    if (json_unpack(o, "{s:s, s:s, s:I, s:s}", "run", &run, "set", &set, "question",
                    &question, "crc32", &crc)) {
        json_decref(o);
        return refuse_other(l, number);
    }
    if (strcmp(run, l->run)) {
        const enum err err =
            err_set(ERR_MISMATCH, __FILE__, __LINE__,
                    "%s: line %" PRId64 " is of another run (%.300s); this run is %s. Name "
                    "another file, or delete this one",
                    l->path, number, run, l->run);
        json_decref(o);
        return err;
    }
    make_key(key, set, question, crc);
    FAIL_IF(json_object_set_new(l->stored, key, o), ERR_MEMORY, "out of memory for %s",
            l->path);
    return OK;
}

/* Stores all complete lines of text; *end is where they end. */
static enum err store_all(size_t *end, struct task_lines *l, const char *text, size_t n)
{
    int64_t number = 0;
    *end = 0;
    for (const char *newline; *end < n; *end = (size_t)(newline - text) + 1) {
        newline = memchr(text + *end, '\n', n - *end);
        if (!newline)
            break;
        TRY(store(l, text + *end, (size_t)(newline - text) - *end, ++number));
    }
    return !number && n ? refuse_other(l, 1) : OK;
}

/* Reads what the file holds. A last line without a newline was cut by a kill; it is removed
 * once all lines before it are known to be of this run. */
static enum err read_earlier(struct task_lines *l)
{
    char *text;
    size_t n, end;
    if (file_size(l->real) <= 0)
        return OK;
    TRY(file_read_all(&text, &n, l->real, FILE_LIMIT));
    const enum err err = store_all(&end, l, text, n);
    mem_free(text);
    TRY(err);
    return end < n && truncate(l->real, (off_t)end) ? file_write_error(l->path, errno) : OK;
}

/* --- opening ------------------------------------------------------------------------ */

static enum err open_growing(struct task_lines *l)
{
    char *real = realpath(l->path, NULL);
    const enum err err = mem_strdup(&l->real, real ? real : l->path);
    free(real);
    TRY(err);
    TRY(lock_take(&l->lock, l->real, "this output", 0));
    TRY(read_earlier(l));
    l->fd = open(l->real, O_WRONLY | O_APPEND | O_CLOEXEC);
    if (l->fd < 0)
        return file_write_error(l->path, errno);
    return OK;
}

static enum err open_all(struct task_lines *l, const char *run)
{
    TRY(mem_strdup(&l->run, run));
    l->stored = json_object();
    FAIL_IF(!l->stored, ERR_MEMORY, "out of memory for the output");
    if (!l->path)
        return OK;
    TRY(file_writer_probe(l->path));
    return file_exists(l->path) && !file_is_regular(l->path) ? OK : open_growing(l);
}

static enum err open_lines(struct task_lines **out, const char *path, const char *run,
                           int digits)
{
    struct task_lines *l;
    TRY(mem_calloc(&l, 1, sizeof(*l)));
    l->path = path;
    l->flags = JSON_REAL_PRECISION((size_t)digits);
    l->fd = -1;
    l->lock.fd = -1;
    const enum err err = open_all(l, run);
    if (err)
        task_lines_close(&l);
    else
        *out = l;
    return err;
}

enum err task_lines_open(struct task_lines **out, const char *path, const char *run,
                         int digits)
{
    const enum err err = open_lines(out, path, run, digits);
    if (err)
        return err_add(err, "-o: ");
    if ((*out)->fd >= 0)
        stop_keeps(path);
    return OK;
}

enum err task_lines_open_kept(struct task_lines **out, const struct task_kept *kept,
                              int digits)
{
    if (!kept)
        return open_lines(out, NULL, "", digits);
    const enum err err = open_lines(out, kept->path, kept->run, digits);
    if (err != ERR_MISMATCH)
        return err;
    err_clear();
    FAIL_IF(unlink(kept->path), ERR_IO, "%s: cannot remove: %s", kept->path,
            strerror(errno));
    return open_lines(out, kept->path, kept->run, digits);
}

void task_lines_close(struct task_lines **pl)
{
    struct task_lines *l = *pl;
    *pl = NULL;
    if (!l)
        return;
    if (l->fd >= 0)
        close(l->fd);
    lock_release(&l->lock);
    for (int64_t i = 0; i < l->n; i++)
        free(l->entry[i].text);
    mem_free(l->entry);
    json_decref(l->stored);
    json_decref(l->taken);
    mem_free(l->run);
    mem_free(l->real);
    mem_free(l);
}

/* --- questions ---------------------------------------------------------------------- */

static enum err add_entry(struct task_lines *l, uint32_t crc)
{
    if (l->n == l->room) {
        const int64_t more = l->room ? 2 * l->room : 256;
        TRY(mem_resize(&l->entry, (size_t)l->room, (size_t)more, sizeof(*l->entry)));
        l->room = more;
    }
    l->entry[l->n++] = (struct entry){.crc = crc};
    return OK;
}

enum err task_lines_expect(const json_t **line, struct task_lines *l, const char *set,
                           int64_t question, uint32_t crc)
{
    char key[KEY_MAX], digits[9];
    snprintf(digits, sizeof(digits), "%08" PRIx32, crc);
    make_key(key, set, (json_int_t)question, digits);
    TRY(add_entry(l, crc));
    json_decref(l->taken);
    l->taken = json_incref(json_object_get(l->stored, key));
    *line = l->taken;
    if (!l->taken)
        return OK;
    l->kept++;
    l->entry[l->n - 1].text = json_text(l->taken, l->flags);
    FAIL_IF(!l->entry[l->n - 1].text, ERR_MEMORY, "out of memory for the output");
    json_object_del(l->stored, key);
    return OK;
}

enum err task_lines_check(const struct task_lines *l)
{
    const char *key;
    json_t *line;
    json_object_foreach(l->stored, key, line)
        FAIL(ERR_MISMATCH,
             "-o: %s has a line for question %lld of %s, which this run does not ask, or "
             "asks in other tokens; name another file, or delete this one",
             l->path, (long long)json_integer_value(json_object_get(line, "question")),
             json_string_value(json_object_get(line, "set")));
    if (l->kept)
        log_info("%s: %" PRId64 " of %" PRId64 " questions are answered already", l->path,
                 l->kept, l->n);
    return OK;
}

int64_t task_lines_count(const struct task_lines *l)
{
    return l->n;
}

int64_t task_lines_kept(const struct task_lines *l)
{
    return l->kept;
}

/* --- writing ------------------------------------------------------------------------ */

/* Appends a line in one call, so that a kill leaves whole lines, as a rule. */
static enum err append(struct task_lines *l, const char *text)
{
    const off_t before = lseek(l->fd, 0, SEEK_END);
    char *line = NULL;
    const int n = asprintf(&line, "%s\n", text);
    FAIL_IF(n < 0, ERR_MEMORY, "out of memory for the output");
    ssize_t put;
    do
        put = write(l->fd, line, (size_t)n);
    while (put < 0 && errno == EINTR);
    const int why = put < 0 ? errno : ENOSPC;
    free(line);
    if (put == n)
        return OK;
    if (put > 0 && ftruncate(l->fd, before))
        return file_write_error(l->path, errno);
    return err_add(file_write_error(l->path, why), "the lines before this one are kept; ");
}

enum err task_lines_put(struct task_lines *l, int64_t number, json_t *o)
{
    struct entry *e = &l->entry[number];
    char crc[9];
    snprintf(crc, sizeof(crc), "%08" PRIx32, e->crc);
    const bool bad = !o || json_object_set_new(o, "crc32", json_string(crc)) ||
                     json_object_set_new(o, "run", json_string(l->run));
    e->text = bad ? NULL : json_text(o, l->flags);
    json_decref(o);
    FAIL_IF(!e->text, ERR_MEMORY, "out of memory for a line of the output");
    return l->fd < 0 ? OK : append(l, e->text);
}

enum err task_lines_finish(struct task_lines *l)
{
    struct file_writer *w;
    enum err err = OK;
    if (!l->path)
        return OK;
    TRY(file_writer_open(&w, l->path));
    for (int64_t i = 0; i < l->n && !err; i++)
        err = file_printf(w, "%s\n", l->entry[i].text);
    if (!err)
        return file_writer_commit(&w);
    file_writer_abort(&w);
    return err;
}
