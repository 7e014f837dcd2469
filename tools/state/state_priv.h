/* SPDX-License-Identifier: MIT
 *
 * Shared by state.c (opening, manifest), state_dir.c (the directory's names) and state_io.c
 * (calib's callbacks) only. */
#ifndef WKVQ_STATE_PRIV_H
#define WKVQ_STATE_PRIV_H

#include "convert/checkpoint/safetensors.h"
#include "kernels/base/lock.h"
#include "tools/state/state.h"

#define STREAMS_MAX 4096
#define STATE_MANIFEST "manifest.json"

struct state_stream {
    void *data;
    size_t bytes;
};

struct state {
    char *dir;
    struct lock lock;
    struct arch arch; /* n_layers 0: opened without a model */
    struct recipe recipe;
    struct weight_spec weights;
    struct kv_spec kv;
    json_t *manifest; /* the whole */
    int64_t blocks;
    /* state_source */
    struct quant_source source;
    struct block_quant current;
    /* calib_io */
    void (*event)(void *ctx, const struct calib_event *e);
    bool (*stop)(void *ctx);
    void *hook_ctx;
    char device[16]; /* "": not known */
    struct state_stream *stream;
    int n_streams;
    struct named_tensor *partial; /* what load_partial lent, data owned */
    int n_partial;
};

/* Path of a file of the state; release with mem_free. */
enum err state_path(char **out, const struct state *s, const char *name);
/* {"file", "crc32", "bytes"} of a file that is there. */
enum err state_file_entry(json_t **out, const struct state *s, const char *name);
/* The file that entry describes, unchanged? Errors: ERR_FORMAT naming the file. */
enum err state_check_entry(const struct state *s, const json_t *entry, const char *name);
enum err state_write_manifest(const struct state *s);
void state_drop_partial(struct state *s);

/* Is everything in the directory a file of this state? Before a manifest is loaded, of any
 * state. ERR_USAGE naming the first that is not; links and directories are not. */
enum err state_check_names(const struct state *s);
/* Remove the files that a kill left: temporary ones of dead processes, and blocks and
 * partials that the manifest does not name. */
enum err state_remove_leftovers(const struct state *s);
/* *yes: dir is a directory in which a state was, or may be: no file but a lock. */
enum err state_is_empty(bool *yes, const char *dir);

#endif
