/* SPDX-License-Identifier: MIT */
#include "convert/output/out_plan.h"

#include "convert/format/artifact_names.h"
#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"

#include <string.h>

#define SHARD_BYTES 5000000000u

enum err out_plan_add(struct out_plan *p, const struct out_tensor *t)
{
    if (p->n == p->room) {
        const size_t room = p->room ? p->room * 2 : 256;
        TRY(mem_resize(&p->tensor, p->n, room, sizeof(*t)));
        p->room = room;
    }
    struct out_tensor *to = &p->tensor[p->n];
    *to = *t;
    enum err err = size_product(&to->bytes, t->dim, t->n_dims, dtype_bytes(t->dtype));
    if (err)
        return err_add(err, "tensor %s: ", t->name);
    p->n++;
    return OK;
}

enum err out_plan_cut(struct out_plan *p, uint64_t limit)
{
    if (!limit)
        limit = SHARD_BYTES;
    uint64_t used = 0;
    int shard = 0;
    for (size_t i = 0; i < p->n; i++) {
        if (used && used + p->tensor[i].bytes > limit) {
            shard++;
            used = 0;
        }
        used += p->tensor[i].bytes;
        p->tensor[i].shard = shard;
    }
    mem_free(p->shard);
    p->n_shards = shard + 1;
    TRY(mem_calloc(&p->shard, (size_t)p->n_shards, sizeof(*p->shard)));
    for (int k = 0; k < p->n_shards; k++)
        artifact_shard_name(p->shard[k].name, k, p->n_shards);
    return OK;
}

/* Returns the end of the shard whose first tensor is number `first`. */
static size_t shard_end(const struct out_plan *p, size_t first)
{
    size_t end = first;
    while (end < p->n && p->tensor[end].shard == p->tensor[first].shard)
        end++;
    return end;
}

/* Opens the file of tensors [first, end), one shard. dir NULL: only the header's size is
 * computed. */
static enum err open_shard(struct st_writer **out, const char *dir,
                           const struct out_plan *p, size_t first, size_t end)
{
    enum err err = OK;
    const struct out_tensor *t = &p->tensor[first];
    const size_t n = end - first;
    struct st_entry *e = NULL;
    char *path = NULL;
    TRY_OUT(mem_calloc(&e, n, sizeof(*e)));
    for (size_t i = 0; i < n; i++) {
        e[i] = (struct st_entry){t[i].name, t[i].dtype, t[i].n_dims, {0}};
        memcpy(e[i].dim, t[i].dim, sizeof(e[i].dim));
    }
    if (dir)
        TRY_OUT(file_join(&path, dir, p->shard[t->shard].name));
    TRY_OUT(st_writer_open(out, path, e, (int64_t)n, NULL, 0));
out:
    mem_free(path);
    mem_free(e);
    return err;
}

enum err out_plan_measure(struct out_plan *p)
{
    for (size_t first = 0, end; first < p->n; first = end) {
        struct out_shard *shard = &p->shard[p->tensor[first].shard];
        struct st_writer *f = NULL;
        end = shard_end(p, first);
        TRY(open_shard(&f, NULL, p, first, end));
        shard->bytes = st_writer_file_bytes(f); /* of the header */
        st_writer_abort(&f);
        for (size_t i = first; i < end; i++)
            shard->bytes += p->tensor[i].bytes;
    }
    return OK;
}

static enum err write_shard(struct out_plan *p, const char *dir, size_t first, size_t end,
                            enum err (*fn)(void *ctx, struct st_writer *f, size_t i),
                            void *ctx)
{
    enum err err = OK;
    struct out_shard *shard = &p->shard[p->tensor[first].shard];
    struct st_writer *f = NULL;
    TRY_OUT(open_shard(&f, dir, p, first, end));
    for (size_t i = first; i < end; i++) {
        TRY_OUT(fn(ctx, f, i));
        p->tensor[i].crc = st_writer_crc(f, (int64_t)(i - first));
    }
    shard->bytes = st_writer_file_bytes(f);
    shard->crc = st_writer_file_crc(f);
    TRY_OUT(st_writer_commit(&f));
out:
    st_writer_abort(&f);
    return err;
}

enum err out_plan_write(struct out_plan *p, const char *dir,
                        enum err (*fn)(void *ctx, struct st_writer *f, size_t i), void *ctx)
{
    for (size_t first = 0, end; first < p->n; first = end) {
        end = shard_end(p, first);
        TRY(write_shard(p, dir, first, end, fn, ctx));
    }
    return OK;
}

void out_plan_free(struct out_plan *p)
{
    mem_free(p->tensor);
    mem_free(p->shard);
    *p = (struct out_plan){0};
}
