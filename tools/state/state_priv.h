/* SPDX-License-Identifier: MIT
 *
 * Private declarations of state.c (opening, manifest), state_dir.c (file names) and
 * state_io.c (calib's callbacks). */
#ifndef WKVQ_STATE_PRIV_H
#define WKVQ_STATE_PRIV_H

#include "convert/checkpoint/safetensors.h"
#include "kernels/base/file/lock.h"
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
    json_t *manifest; /* the parsed manifest, owned */
    int64_t blocks;
    /* state_source */
    struct quant_source source;
    struct block_quant current;
    /* calib_io */
    void (*event)(void *ctx, const struct calib_event *e);
    bool (*stop)(void *ctx);
    void *hook_ctx;
    char device[16]; /* device of new blocks; "": unknown */
    struct state_stream *stream;
    int n_streams;
    struct named_tensor *partial; /* lent by load_partial; data owned */
    int n_partial;
};

/* Makes the path of a file of the state. Release *out with mem_free. */
enum err state_path(char **out, const struct state *s, const char *name);
/* Makes {"file", "crc32", "bytes"} of an existing file. */
enum err state_file_entry(json_t **out, const struct state *s, const char *name);
/* Returns ERR_FORMAT, naming the file, unless it is as entry describes. */
enum err state_check_entry(const struct state *s, const json_t *entry, const char *name);
enum err state_write_manifest(const struct state *s);
void state_drop_partial(struct state *s);

/* Returns ERR_USAGE, naming the first file that is not one of this state. Before a manifest
 * is loaded, files of any state are allowed. Links and directories are refused. */
enum err state_check_names(const struct state *s);
/* Removes leftovers of a killed run: temporary files of dead processes, and blocks and
 * partials that the manifest does not name. */
enum err state_remove_leftovers(const struct state *s);
/* Writes whether dir is a directory that contains nothing, or only a lock. */
enum err state_is_empty(bool *yes, const char *dir);

#endif
