/* SPDX-License-Identifier: MIT
 *
 * Private declarations of state.c (opening, manifest), state_dir.c (file names), state_io.c
 * (calib's callbacks) and state_refine.c (refined blocks). */
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

/* Saves and loads the unfinished block or, as block number s->blocks, refinement. What was loaded
 * is valid until the next of these calls. */
enum err state_save_partial(void *ctx, int64_t block, const struct named_tensor *t, int n);
enum err state_load_partial(void *ctx, int64_t block, const struct named_tensor **t,
                            int *n);
/* Takes the partial out of the manifest, and writes its file's name, which state_remove_partial
 * removes once the manifest is written. */
void state_detach_partial(struct state *s, char file[40]);
enum err state_remove_partial(const struct state *s, const char *name);

/* Returns the list of refined blocks' files; NULL before refinement. Borrowed. */
const json_t *state_refined_list(const struct state *s);
enum err state_load_refined(struct block_quant *out, const struct state *s, int64_t i);
/* Returns ERR_FORMAT or ERR_IO unless the refined blocks are as the manifest says. */
enum err state_check_refined(const struct state *s);
/* Makes the settings of refinement in `identity` the state's, if they may differ. */
enum err state_adopt_refinement(struct state *s, const json_t *identity);
/* Reads s->recipe and what follows from it out of the manifest. */
enum err state_adopt_recipe(struct state *s, const char *path);

/* Returns ERR_USAGE, naming the first file that is not one of this state. Before a manifest
 * is loaded, files of any state are allowed. Links and directories are refused. */
enum err state_check_names(const struct state *s);
/* Removes leftovers of a killed run: temporary files of dead processes, and blocks and
 * partials that the manifest does not name. */
enum err state_remove_leftovers(const struct state *s);
/* Writes whether dir is a directory that contains nothing, or only a lock. */
enum err state_is_empty(bool *yes, const char *dir);

#endif
