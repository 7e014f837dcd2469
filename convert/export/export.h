/* SPDX-License-Identifier: MIT
 *
 * Exports an artifact in formats of other engines (docs/export.md). An export has three
 * steps: open the artifact, check that a format can hold it, write. A check also says what
 * of the artifact is carried and what is dropped. Nothing is written before it. */
#ifndef WKVQ_EXPORT_H
#define WKVQ_EXPORT_H

#include "convert/artifact/reader.h"
#include "data/json.h"
#include "kernels/base/pool.h"

/* --- the artifact ------------------------------------------------------------------- */

/* A projection, or the quantized embedding or head. */
struct export_linear {
    int64_t layer; /* -1: embedding or head */
    int lin;       /* enum lin; N_LIN: embedding or head */
    char name[96]; /* "model.layers.3.mlp.down_proj", "model.embed_tokens", "lm_head" */
    /* Views into the mapped files. At 16 bits only w is set. The bias is in rest, too. */
    const struct packed_linear *packed;
    const struct st_tensor *weight; /* the stored weight at 16 bits, else NULL */
    /* Of one expert, its rows, at which the two above then point. */
    struct packed_linear rows;
    struct st_tensor part;
    char part_name[104]; /* name and ".weight" */
};

/* True for each part of the cache's calibration that is not the identity. */
struct export_calibrated {
    bool k_scale, k_shift, v_scale, v_shift;
};

/* An open artifact, read-only. All CRCs have been compared. Tensors are mapped, not loaded:
 * a writer passes over them once and releases them (export_release, artifact_release). */
struct export_source {
    const char *dir;           /* borrowed from the caller of export_open() */
    struct artifact *artifact; /* owned; the next three are borrowed from it */
    const struct arch *arch;
    const struct weight_spec *weights;
    const struct kv_spec *kv;
    json_t *config;   /* config.json without quantization_config, owned */
    json_t *manifest; /* manifest.json, owned */
    struct export_linear
        *linear; /* [n_linears] every projection, by layer, lin and expert; owned */
    int64_t n_linears;
    /* The quantized embedding, and the quantized head unless it is tied. */
    struct export_linear end[2];
    int n_ends; /* 0: they are not quantized, and are in rest */
    /* [n_rest] every other tensor that an engine could need, in the artifact's order:
     * embeddings, norms, biases, the head, tensors that the architecture does not know.
     * Without packed tensors, 16-bit projections and the cache's calibration. The array is
     * owned, tensors are borrowed. */
    const struct st_tensor **rest;
    int64_t n_rest;
    struct export_calibrated calibrated;
};

/* Opens the artifact in dir. Errors: those of artifact_open(). */
enum err export_open(struct export_source **out, const char *dir);
void export_close(struct export_source **s);

/* Returns the place in s->linear of projection lin of a layer, or that of its first expert. */
int64_t export_linear_at(const struct export_source *s, int64_t layer, int lin);

/* Unpack one row of a matrix of 2 to 8 bits. codes [in], zeros and scales [groups];
 * scales are fp16. The weight at column c is (code - zero) scale of group
 * c / group_size. */
void export_row_codes(uint8_t *codes, const struct packed_linear *p, int64_t row);
void export_row_zeros(uint8_t *zeros, const struct packed_linear *p, int64_t row);
void export_row_scales(uint16_t *scales, const struct packed_linear *p, int64_t row);
/* Returns one scale, fp16. */
uint16_t export_scale(const struct packed_linear *p, int64_t row, int64_t group);
/* Releases the pages of its tensors; of experts' projections, when l is the last expert's. */
void export_release(const struct export_source *s, const struct export_linear *l);
/* Returns the significant bits, at most 11, that hold every scale of the artifact. */
int export_scale_bits(const struct export_source *s);

/* --- the export --------------------------------------------------------------------- */

struct export_options {
    bool drop_cache;      /* --kv drop: leave out a calibration that cannot be carried */
    bool fold_v_shift;    /* --fold v-shift */
    enum dtype dtype;     /* of a dense checkpoint: F16, BF16 or F32 */
    uint64_t shard_bytes; /* 0: 5e9 */
    int threads;          /* 0: one per core */
    const char *gguf_weights; /* --weights q4_1 or q8_0; NULL: q4_1 */
    const char *gguf_pre;     /* --gguf-pre NAME: instead of the one found; "none"; NULL */
    const char *gguf_vocab;   /* --gguf-vocab FILE: copy its tokenizer; NULL */
    /* For the model card or general.* of GGUF; NULL: as the artifact says. */
    const char *base_model, *license;
    /* Outputs of `wkvq eval --json`, an array, for the model card; borrowed, or NULL. */
    json_t *eval;
    /* Keys of the calibration that differ from their defaults, an object, for the model card;
     * borrowed, or NULL: not known. */
    const json_t *changes;
};

enum export_fate { EXPORT_CARRIED, EXPORT_CHANGED, EXPORT_DROPPED };
extern const char *const export_fate_name[]; /* "carried", "changed", "dropped" */

struct export_note {
    enum export_fate fate;
    char text[300]; /* a sentence without a full stop */
};

#define EXPORT_NOTES_MAX 24

struct export_format;

struct export_job {
    const struct export_source *source;
    struct export_options options;
    const struct export_format *format;
    /* Called with the finished share, 0 to 1; its error ends the writing. May be NULL. */
    enum err (*progress)(void *ctx, double share);
    void *progress_ctx;

    /* Set by export_check(). */
    struct export_note note[EXPORT_NOTES_MAX];
    int n_notes;
    bool carries_target; /* the cache of kv.target is that of the format's engines */
    uint64_t bytes;      /* of all files to write */
    double weight_bits; /* per weight of all projections, scales and zero points included */
    void *plan;         /* the format's own; released by export_job_free() */

    /* During export_write(). */
    struct pool *pool;
    uint64_t done, total; /* bytes of tensors, for progress */
};

/* What the format's engines do for the cache: they rotate keys themselves. */
#define EXPORT_ENGINE_ROTATES_K 1u
/* The format can fold the shift of values into biases (--fold v-shift). */
#define EXPORT_FOLDS_V_SHIFT 2u
/* Caches of kv.target: the format's engine is llama.cpp; it holds the scales of an FP8 cache. */
#define EXPORT_LLAMA_CPP 4u
#define EXPORT_FP8_SCALES 8u
/* vLLM, or transformers, loads the format and has a cache of its own to serve it with. */
#define EXPORT_VLLM 16u
#define EXPORT_TRANSFORMERS 32u

struct export_format {
    const char *name;    /* of --format */
    const char *engines; /* that load it, for `--format list` */
    const char *holds;   /* what it can hold, one line */
    bool is_file;        /* -o names a file, not a directory */
    unsigned cache;      /* EXPORT_ENGINE_*, EXPORT_FOLDS_* */
    /* Refuses what the format cannot hold: ERR_SUPPORT, with field, value, and what would
     * work. Notes what becomes of the weights; export_check() has done so for the cache.
     * Sets bytes and plan. */
    enum err (*check)(struct export_job *j);
    /* Writes everything to out, beside it and renamed. */
    enum err (*write)(struct export_job *j, const char *out);
    /* Releases j->plan, which may be NULL or half built. */
    void (*release)(struct export_job *j);
};

/* All formats, in the order of `--format list`. */
extern const struct export_format *const export_formats[];
extern const int export_format_count;
/* Returns the format, or NULL. */
const struct export_format *export_find(const char *name);

/* Checks the whole export; source, options and format must be set, and the rest zero.
 * Errors: ERR_SUPPORT for what the format cannot hold, ERR_USAGE, ERR_MEMORY. */
enum err export_check(struct export_job *j);
/* Writes it; after export_check(). Errors: ERR_USAGE for a place that cannot be written or
 * is taken, ERR_IO, ERR_MEMORY. */
enum err export_write(struct export_job *j, const char *out);
void export_job_free(struct export_job *j); /* accepts a zeroed or half-built one */

/* --- for formats -------------------------------------------------------------------- */

/* Adds a note. More than EXPORT_NOTES_MAX are a mistake of the program: ERR_SHAPE. */
enum err export_note(struct export_job *j, enum export_fate fate, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* Return the checkpoint's identifier on the hub and its license: those of the options, or
 * else what config.json has and what the checkpoint stated when it was converted. NULL if
 * neither is known. Borrowed from the options or the source. */
const char *export_base_model(const struct export_job *j);
const char *export_license(const struct export_job *j);
/* Sets j->weight_bits from the bytes that all projections take in the export. */
void export_set_bits(struct export_job *j, uint64_t bytes);
/* Counts n more bytes of tensors as done. Errors: those of progress. */
enum err export_advance(struct export_job *j, uint64_t n);

#endif
