/* SPDX-License-Identifier: MIT
 *
 * A calibration's state on disk, and the files behind calib's callbacks.
 *
 *   STATE/manifest.json            what the state belongs to, what is finished, CRC-32 of
 *                                  files
 *   STATE/block-0000.safetensors   one a finished block: scales, zeros, k/v scale and shift
 *   STATE/partial-a|b.safetensors  the block in work; two names in turn, so that the one in
 *                                  the manifest is always whole
 *   STATE/lock                     held (flock) while a process works on the state; also
 *                                  lock.owner where the file system has no locks
 *
 * Files are written beside and renamed, the manifest last: a kill at any instant leaves a
 * state that resumes. Nothing in it depends on the clock: a resumed run ends with the bytes
 * of an uninterrupted one. */
#ifndef WKVQ_STATE_H
#define WKVQ_STATE_H

#include "convert/artifact/writer.h"
#include "tools/recipe/recipe.h"

struct state; /* opaque; one thread */

/* *yes: dir looks like a state, with a manifest.json of ours; any other directory is just
 * none. ERR_MEMORY, ERR_IO and ERR_USAGE where that cannot be told. */
enum err state_is(bool *yes, const char *dir);

/* Open DIR for work: make it, or resume what is there. identity is a JSON object (borrowed)
 * that must equal the state's own: {"config": ..., "checkpoint": ..., "tokenizer": ...,
 * "text": ...}. Takes the lock and removes leftovers of killed runs. A state that is half
 * removed is opened too. Errors: ERR_MISMATCH
 * naming the first field that differs with both values; ERR_FORMAT naming a damaged file;
 * ERR_USAGE when another process works on it, or DIR holds something else. */
enum err state_open(struct state **out, const char *dir, const struct arch *a,
                    const json_t *identity);
/* Open an existing state for reading, finished or not; a NULL: from anyone's model (blocks
 * cannot be read then). Errors as above. */
enum err state_open_read(struct state **out, const char *dir, const struct arch *a);
void state_close(struct state **s);
/* Would state_open be able to write there? Missing parents are not made, and nothing stays.
 * Errors: ERR_USAGE. */
enum err state_probe(const char *dir);
/* Remove the state's files, and its directory if nothing else is in it; closes s whatever
 * the result. The manifest says so first and goes last, so that a kill in between is known
 * for what it is (state_removing). */
enum err state_remove(struct state **s);
bool state_removing(const struct state *s);
/* Remove a state by its directory's name; missing is fine. Errors: ERR_USAGE for anything
 * else under that name, and while a process works on it. */
enum err state_discard(const char *dir);
/* Remove the directory of a state that is gone but for its lock (state_look: empty). */
enum err state_remove_empty(const char *dir);

/* What an artifact says of the state that it was written from: CRC-32 of the state's
 * identity and of its blocks' checksums. "" while blocks are missing. */
#define STATE_MARK 9
void state_mark(char out[STATE_MARK], const struct state *s);
/* A state's manifest alone; its other files are not read. */
struct state_look {
    bool is;       /* dir is a state */
    bool removing; /* its artifact is finished, and some of its files are gone */
    bool empty;    /* no state, but a directory that holds nothing but a lock */
    int compute;   /* its recipe's run.compute, where it is a state */
    char mark[STATE_MARK];
};
enum err state_look(struct state_look *out, const char *dir);

const char *state_dir(const struct state *s);
int64_t state_blocks(const struct state *s); /* of the model */
int64_t state_done(const struct state *s);   /* finished */
const struct recipe *state_recipe(const struct state *s);
const json_t *state_identity(const struct state *s); /* borrowed */
/* What is kept of a finished block's statistics; seconds are 0. */
enum err state_stats(struct calib_block_stats *out, const struct state *s, int64_t i);
/* Bytes of its files as the manifest counts them. */
uint64_t state_bytes(const struct state *s);

/* "block-0007.safetensors": the file of a finished block. */
void state_block_name(char out[40], int64_t block);
/* A finished block; owned by the caller (block_quant_free). The file's CRC is checked. */
enum err state_load_block(struct block_quant *out, const struct state *s, int64_t i);
/* What artifact_write and verify_run read; valid while s is open. */
const struct quant_source *state_source(struct state *s);
/* Blocks that are saved from now on say that they were computed on it. */
void state_note_device(struct state *s, const char *device);
/* calib's callbacks over s; event and stop (either NULL) are called with ctx. */
void state_calib_io(struct calib_io *out, struct state *s,
                    void (*event)(void *ctx, const struct calib_event *e),
                    bool (*stop)(void *ctx), void *ctx);

#endif
