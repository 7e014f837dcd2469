/* SPDX-License-Identifier: MIT
 *
 * A calibration's state on disk. It implements calib's callbacks (struct calib_io) with
 * files.
 *
 *   STATE/manifest.json            identity, finished blocks, CRC-32 of files
 *   STATE/block-0000.safetensors   one per finished block: scales, zeros, shift, smoothing
 *   STATE/partial-a.safetensors    the unfinished block or refinement; a and b alternate, so
 *   STATE/partial-b.safetensors    that the one named in the manifest is always complete
 *   STATE/refined-0000.safetensors one per block after refinement: the same with codes and gains
 *                                  of norms; all or none are in the manifest
 *   STATE/lock                     held (flock) while a process works on the state; also
 *                                  lock.owner if the file system has no locks
 *
 * Files are written under a temporary name and renamed, the manifest last. A state can be
 * resumed after a kill at any instant. Nothing in it depends on the clock, so a resumed run
 * ends with the same bytes as an uninterrupted one. */
#ifndef WKVQ_STATE_H
#define WKVQ_STATE_H

#include "convert/artifact/writer.h"
#include "tools/recipe/recipe.h"

struct state; /* opaque; one thread */

/* The part of an identity's text that lists refinement's windows. */
#define STATE_REFINE_WINDOWS "refine_windows"
/* The part of an identity that names the artifact whose blocks were imported; absent from a
 * calibration's. */
#define STATE_ARTIFACT "artifact"
/* The parts of an identity that describe weights another tool quantized, and the full-precision
 * model if that is another checkpoint; absent without. */
#define STATE_WEIGHTS_FROM "weights_from"
#define STATE_FULL_PRECISION "full_precision"
/* The experts of a finished block that calibration did not reach; absent if there are none. */
#define STATE_UNREACHED "unreached_experts"

/* So much work is lost at most when a run is killed in a long epoch or between two looks of
 * refinement, besides a step. */
#define STATE_SAVE_SECONDS 300

/* Writes whether dir looks like a state, with a manifest.json of ours. Any other directory
 * gives false. ERR_MEMORY, ERR_IO or ERR_USAGE if that cannot be determined. */
enum err state_is(bool *yes, const char *dir);

/* Creates or resumes the state in dir. identity is a borrowed JSON object, {"config": ...,
 * "checkpoint": ..., "tokenizer": ..., "text": ..., "artifact": ...}, that must equal the
 * state's own. Its settings of refinement may differ while no refinement has begun; they
 * become the state's. Takes the lock and removes leftovers of killed runs. A partly
 * removed state can be opened as well. ERR_MISMATCH names the first differing field with
 * both values. ERR_FORMAT names a damaged file. ERR_USAGE: another process works on the
 * state, or dir contains something else. */
enum err state_open(struct state **out, const char *dir, const struct arch *a,
                    const json_t *identity);
/* Opens an existing state for reading, finished or not. a NULL: accepts any model, but
 * blocks cannot be read. Errors as for state_open. */
enum err state_open_read(struct state **out, const char *dir, const struct arch *a);
void state_close(struct state **s);
/* Returns OK if state_open could write to dir. Creates no parents and leaves no file.
 * ERR_USAGE. */
enum err state_probe(const char *dir);
/* Removes the state's files, and its directory if nothing else is in it. Closes s whatever
 * the result. The manifest is marked first and removed last, so that a partly removed state
 * is recognized (state_removing). */
enum err state_remove(struct state **s);
bool state_removing(const struct state *s);
/* Removes the state in dir; a missing dir is no error. ERR_USAGE if dir is something else,
 * or while a process works on it. */
enum err state_discard(const char *dir);
/* Removes a directory that contains nothing but the lock of a removed state (state_look:
 * empty). */
enum err state_remove_empty(const char *dir);

/* Writes the mark by which an artifact names its state. It is the CRC-32 of the state's
 * identity and of its blocks' checksums; "" while blocks are missing. */
#define STATE_MARK 9
void state_mark(char out[STATE_MARK], const struct state *s);
/* *crc = a checksum of how far a state is: its identity, and its finished blocks and its
 * unfinished one by the checksums of their files. ERR_MEMORY. */
enum err state_progress_crc(uint32_t *crc, const struct state *s);
/* Facts from a state's manifest alone; other files are not read. All are 0 if dir is NULL. */
struct state_look {
    bool is;       /* dir is a state */
    bool removing; /* its artifact is finished, and some of its files are removed */
    bool empty;    /* no state; the directory contains nothing but a lock */
    /* run.compute and calibration.eval_samples of its recipe, if dir is a state */
    int compute;
    int64_t eval_samples;
    char mark[STATE_MARK];
};
enum err state_look(struct state_look *out, const char *dir);

const char *state_dir(const struct state *s);
int64_t state_blocks(const struct state *s); /* blocks of the model */
int64_t state_done(const struct state *s);   /* finished blocks */
/* Returns whether the refined blocks are saved. */
bool state_refined(const struct state *s);
/* Returns OK if the calibration is finished, with its refinement if the recipe has one. Else
 * ERR_USAGE, which says what is missing and how to finish it. */
enum err state_check_finished(const struct state *s);
const struct recipe *state_recipe(const struct state *s);
const json_t *state_identity(const struct state *s); /* borrowed */
/* Writes the stored statistics of a finished block; seconds are 0. */
enum err state_stats(struct calib_block_stats *out, const struct state *s, int64_t i);
/* Returns the bytes of its files according to the manifest. */
uint64_t state_bytes(const struct state *s);

/* Writes the file name of a finished block, such as "block-0007.safetensors". */
void state_block_name(char out[40], int64_t block);
/* The same for a refined block, "refined-0007.safetensors". */
void state_refined_name(char out[40], int64_t block);
/* Loads a finished block, the refined one if the recipe refines, and checks the file's CRC. The
 * caller releases it with block_quant_free. ERR_USAGE if it is not finished or refined yet. */
enum err state_load_block(struct block_quant *out, const struct state *s, int64_t i);
/* Returns the source that artifact_write and verify_run read; valid while s is open. */
const struct quant_source *state_source(struct state *s);
/* Loads a finished block as calibration left it. */
enum err state_load_calibrated(struct block_quant *out, const struct state *s, int64_t i);
/* Sets the device's name that is recorded in blocks saved from now on. */
void state_note_device(struct state *s, const char *device);
/* Fills out with callbacks for s. event and stop are called with ctx; either may be
 * NULL. */
void state_calib_io(struct calib_io *out, struct state *s,
                    void (*event)(void *ctx, const struct calib_event *e),
                    bool (*stop)(void *ctx), void *ctx);

/* The outcome of a refinement, as the manifest records it. */
struct state_refinement {
    double start, best; /* mean divergence on the guard's windows, nats a token */
    int64_t best_step, steps;
};
/* Writes the stored outcome. Requires state_refined. */
enum err state_refinement(struct state_refinement *out, const struct state *s);
/* Returns {"start", "best", "best_step", "steps"}, a new reference. NULL: out of memory. */
json_t *state_refinement_json(const struct state_refinement *r);
/* Saves all refined blocks, durably, and then forgets the unfinished refinement. */
enum err state_save_refined(struct state *s, const struct block_quant *layers,
                            const struct state_refinement *r);
/* Callbacks for refine_io that save and load the unfinished refinement; ctx is the state. */
enum err state_save_refining(void *ctx, const struct named_tensor *t, int n);
enum err state_load_refining(void *ctx, const struct named_tensor **t, int *n);

#endif
