/* SPDX-License-Identifier: MIT
 *
 * Implements calib's callbacks with files. */
#include "tools/state/state_priv.h"

#include "kernels/base/file/file.h"
#include "kernels/base/file/owner.h"
#include "kernels/base/mem.h"
#include "tools/state/state_block.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* --- streams ------------------------------------------------------------------------ */

static enum err remember(struct state *s, void *data, size_t bytes)
{
    if (!s->stream)
        TRY(mem_calloc(&s->stream, STREAMS_MAX, sizeof(*s->stream)));
    FAIL_IF(s->n_streams == STREAMS_MAX, ERR_SHAPE, "more than %d streams", STREAMS_MAX);
    s->stream[s->n_streams++] = (struct state_stream){data, bytes};
    return OK;
}

/* Makes a file without a name, which disappears with the process. Its blocks are reserved
 * now, because a full disk would otherwise cause a bus error later. */
static enum err nameless_file(int *out, const struct state *s, const char *name,
                              size_t bytes)
{
    enum err err = OK;
    char *path = NULL, file[128], tag[OWNER_TAG_MAX];
    owner_tag(tag);
    snprintf(file, sizeof(file), "stream-%s.tmp.%s", name, tag);
    TRY(state_path(&path, s, file));
    const int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        TRY_OUT(file_write_error(path, errno));
    unlink(path);
    const int full = posix_fallocate(fd, 0, (off_t)bytes);
    if (full) {
        close(fd);
        FAIL_OUT(
            ERR_IO,
            "%s: cannot reserve %zu bytes for activations: %s; free disk space or raise "
            "run.memory so that they live in memory",
            s->dir, bytes, strerror(full));
    }
    *out = fd;
out:
    mem_free(path);
    return err;
}

static enum err stream_open(void *ctx, const char *name, size_t bytes, bool on_disk,
                            void **out)
{
    struct state *s = ctx;
    int fd = -1;
    if (on_disk)
        TRY(nameless_file(&fd, s, name, bytes));
    const int flags = on_disk ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS;
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
    const int why = errno;
    if (fd >= 0)
        close(fd);
    FAIL_IF(p == MAP_FAILED, ERR_MEMORY, "cannot map %zu bytes for stream %s: %s", bytes,
            name, strerror(why));
    const enum err err = remember(s, p, bytes);
    if (err) {
        munmap(p, bytes);
        return err;
    }
    *out = p;
    return OK;
}

static void stream_close(void *ctx, void *p)
{
    struct state *s = ctx;
    for (int i = 0; p && i < s->n_streams; i++) {
        if (s->stream[i].data != p)
            continue;
        munmap(p, s->stream[i].bytes);
        s->stream[i] = s->stream[--s->n_streams];
        return;
    }
}

/* --- finished blocks ---------------------------------------------------------------- */

static json_t *losses_json(const struct calib_block_stats *stats)
{
    json_t *list = json_array();
    for (int64_t e = 0; e < stats->n_epochs; e++)
        json_array_append_new(list, json_real(stats->epoch_loss[e]));
    return list;
}

/* Adds the experts that calibration did not reach, if there are any. */
static void note_unreached(json_t *entry, const struct calib_block_stats *stats)
{
    json_t *list = json_array();
    for (int64_t e = 0; e < ARCH_MAX_EXPERTS; e++)
        if (stats->unreached[e])
            json_array_append_new(list, json_integer(e));
    if (json_array_size(list))
        json_object_set(entry, STATE_UNREACHED, list);
    json_decref(list);
}

/* Records the device that computed a block, since it determines the last bits. */
static void note_device(const struct state *s, json_t *entry)
{
    if (*s->device)
        json_object_set_new(entry, "device", json_string(s->device));
}

void state_note_device(struct state *s, const char *device)
{
    snprintf(s->device, sizeof(s->device), "%s", device);
}

/* Removes a partial file of an earlier manifest. Any other name is ignored, since the name
 * comes from a file. */
enum err state_remove_partial(const struct state *s, const char *name)
{
    char *path = NULL;
    if (strcmp(name, "partial-a.safetensors") && strcmp(name, "partial-b.safetensors"))
        return OK;
    TRY(state_path(&path, s, name));
    if (file_is_plain(path))
        unlink(path);
    mem_free(path);
    return OK;
}

/* Takes the partial out of the manifest. Writes its file's name, to be removed later. */
void state_detach_partial(struct state *s, char file[40])
{
    const json_t *entry = json_object_get(s->manifest, "partial");
    const char *name = json_string_value(json_object_get(entry, "file"));
    snprintf(file, 40, "%s", name ? name : "");
    json_object_set_new(s->manifest, "partial", json_null());
}

static enum err save_block(void *ctx, int64_t block, const struct block_quant *q,
                           const struct calib_block_stats *stats)
{
    struct state *s = ctx;
    json_t *entry = NULL, *done = json_object_get(s->manifest, "done");
    char name[40], partial[40], *path = NULL;
    FAIL_IF(block != state_done(s), ERR_SHAPE, "block %" PRId64 " saved after %" PRId64,
            block, state_done(s) - 1);
    state_block_name(name, block);
    TRY(state_path(&path, s, name));
    const enum err err = state_block_save(path, q, &s->arch, block, stats);
    mem_free(path);
    TRY(err);
    TRY(state_file_entry(&entry, s, name));
    json_object_set_new(entry, "start_loss", json_real(stats->start_loss));
    json_object_set_new(entry, "best_loss", json_real(stats->best_loss));
    json_object_set_new(entry, "best_epoch", json_integer(stats->best_epoch));
    json_object_set_new(entry, "epoch_loss", losses_json(stats));
    note_unreached(entry, stats);
    note_device(s, entry);
    FAIL_IF(json_array_append_new(done, entry), ERR_MEMORY,
            "%s: out of memory for the manifest", s->dir);
    state_detach_partial(s, partial);
    TRY(state_write_manifest(s));
    return *partial ? state_remove_partial(s, partial) : OK;
}

static enum err load_block(void *ctx, int64_t block, struct block_quant *q)
{
    return state_load_calibrated(q, ctx, block);
}

/* --- the unfinished block ------------------------------------------------------------- */

enum err state_save_partial(void *ctx, int64_t block, const struct named_tensor *t, int n)
{
    struct state *s = ctx;
    json_t *entry = NULL;
    char old[40], *path = NULL;
    state_drop_partial(s); /* as large as t, and no longer read */
    state_detach_partial(s, old);
    const char *name = strcmp(old, "partial-a.safetensors") ? "partial-a.safetensors"
                                                            : "partial-b.safetensors";
    TRY(state_path(&path, s, name));
    const enum err err = st_save(path, t, n, NULL, 0);
    mem_free(path);
    TRY(err);
    TRY(state_file_entry(&entry, s, name));
    json_object_set_new(entry, "block", json_integer(block));
    note_device(s, entry);
    FAIL_IF(json_object_set_new(s->manifest, "partial", entry), ERR_MEMORY,
            "%s: out of memory for the manifest", s->dir);
    TRY(state_write_manifest(s));
    return *old ? state_remove_partial(s, old) : OK;
}

static void drop_partial(void *ctx)
{
    state_drop_partial(ctx);
}

void state_drop_partial(struct state *s)
{
    for (int i = 0; i < s->n_partial; i++)
        mem_free(s->partial[i].t.data);
    mem_free(s->partial);
    s->partial = NULL;
    s->n_partial = 0;
}

/* Copies a tensor to aligned memory. In a safetensors file it may have any alignment. */
static enum err copy_tensor(struct named_tensor *out, const struct st_tensor *t,
                            const char *path)
{
    struct tensor v = {.dtype = t->dtype, .n_dims = t->n_dims, .ld = 1};
    FAIL_IF(t->n_dims > TENSOR_MAX_DIMS || t->dtype == DT_OTHER ||
                strlen(t->name) >= sizeof(out->name),
            ERR_FORMAT,
            "%s: tensor %s: %d dimensions of %s, which no tensor of a state "
            "has",
            path, t->name, t->n_dims, t->dtype_name);
    for (int i = 0; i < t->n_dims; i++)
        v.dim[i] = v.ld = t->dim[i];
    TRY(mem_alloc(&v.data, t->bytes, 1));
    memcpy(v.data, t->data, t->bytes);
    snprintf(out->name, sizeof(out->name), "%s", t->name);
    out->t = v;
    return OK;
}

static enum err read_partial(struct state *s, const char *name)
{
    enum err err = OK;
    char *path = NULL;
    struct st_file *f = NULL;
    TRY(state_path(&path, s, name));
    TRY_OUT(st_open(&f, path));
    TRY_OUT(mem_calloc(&s->partial, (size_t)st_count(f), sizeof(*s->partial)));
    for (int64_t i = 0; i < st_count(f); i++) {
        TRY_OUT(copy_tensor(&s->partial[i], st_at(f, i), path));
        s->n_partial++;
    }
out:
    st_close(&f);
    mem_free(path);
    return err;
}

enum err state_load_partial(void *ctx, int64_t block, const struct named_tensor **t, int *n)
{
    struct state *s = ctx;
    const json_t *entry = json_object_get(s->manifest, "partial");
    const char *name = json_string_value(json_object_get(entry, "file"));
    state_drop_partial(s);
    *n = 0;
    if (!name || json_integer_value(json_object_get(entry, "block")) != block)
        return OK;
    FAIL_IF(strcmp(name, "partial-a.safetensors") && strcmp(name, "partial-b.safetensors"),
            ERR_FORMAT, "%s/manifest.json: partial: file '%s' is not a file of a state",
            s->dir, name);
    TRY(state_check_entry(s, entry, name));
    TRY(read_partial(s, name));
    *t = s->partial;
    *n = s->n_partial;
    return OK;
}

/* --- hooks -------------------------------------------------------------------------- */

static void forward_event(void *ctx, const struct calib_event *e)
{
    struct state *s = ctx;
    if (s->event)
        s->event(s->hook_ctx, e);
}

static bool forward_stop(void *ctx)
{
    struct state *s = ctx;
    return s->stop && s->stop(s->hook_ctx);
}

void state_calib_io(struct calib_io *out, struct state *s,
                    void (*event)(void *ctx, const struct calib_event *e),
                    bool (*stop)(void *ctx), void *ctx)
{
    s->event = event;
    s->stop = stop;
    s->hook_ctx = ctx;
    *out = (struct calib_io){
        .ctx = s,
        .stream_open = stream_open,
        .stream_close = stream_close,
        .save_block = save_block,
        .load_block = load_block,
        .save_partial = state_save_partial,
        .load_partial = state_load_partial,
        .drop_partial = drop_partial,
        .save_seconds = STATE_SAVE_SECONDS,
        .event = forward_event,
        .stop = forward_stop,
    };
}
