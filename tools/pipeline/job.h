/* SPDX-License-Identifier: MIT
 *
 * A job: configuration, checkpoint, tokenizer, text and device of a command that runs a
 * model. A job is opened step by step, so that a mistake is reported before the next,
 * longer step. A job belongs to one thread. */
#ifndef WKVQ_JOB_H
#define WKVQ_JOB_H

#include "convert/artifact/reader.h"
#include "convert/checkpoint/hf.h"
#include "tools/cli/progress.h"
#include "tools/pipeline/texts.h"

/* Options of a job besides its recipe. Strings are borrowed. */
struct job_options {
    const char *model_dir;
    const char
        *weights_from; /* directory of weights that another tool quantized; or NULL */
    const char
        *source; /* state or artifact that brings the recipe, for messages; or NULL */
    bool quiet;  /* print no progress lines */
    const char *log_json;      /* file for progress; NULL: none */
    const char *cell;          /* name of a sweep's cell, for log_json; NULL: none */
    bool plan;                 /* only estimate memory and time */
    bool json;                 /* print reports as one JSON object */
    uint64_t shard_bytes;      /* bytes per file of an artifact; 0: the writer's default */
    const uint32_t *model_crc; /* hf_identity of model_dir if known, else NULL */
};

/* An artifact whose blocks take the place of a calibration's. */
struct job_import {
    struct artifact *artifact; /* owned */
    json_t *identity;          /* owned: {"manifest_crc32", "provenance"} */
};

struct job {
    struct job_options options;
    const char *model_dir; /* options.weights_from, or else options.model_dir; borrowed */
    struct recipe recipe;
    struct hf_model *model; /* NULL before job_open_model */
    /* The full-precision model, if options.model_dir is not the directory of given weights;
     * else NULL, and model is it. */
    struct hf_model *full;
    struct arch arch;
    struct dev *dev;
    struct tokenizer *tokenizer;
    struct token_ids ids; /* token ids of all texts, one after another, owned */
    uint32_t ids_crc;
    struct batch_text *text; /* [n_texts] where they are in ids, owned; names borrowed */
    int n_texts;
    int64_t *text_windows; /* [n_texts] windows of each text, owned */
    int64_t *offset;  /* [recipe.samples] first token of each calibration window, owned */
    int32_t *windows; /* [samples][seqlen] token ids, owned */
    /* Windows of refinement, those to learn from and then the guard's; NULL without. */
    int64_t *refine_offset;  /* [refine.samples + refine.guard] first token, owned */
    int32_t *refine_windows; /* [refine.samples + refine.guard][refine.seqlen], owned */
    struct calib_settings settings;
    struct refine_settings refine;
    const struct job_import *import; /* borrowed; NULL: the job calibrates */
    bool only_refines;               /* all blocks are there, or imported */
    bool makes_artifact;             /* and it is not only the state that is wanted */
    bool only_converts;              /* nothing learns, so there is no state */
    int64_t cells;        /* jobs that share the device's memory; 0 or 1: this one alone */
    uint64_t state_bytes; /* bytes on disk that the calibration's state still needs */
    const struct ranks *ranks; /* borrowed; NULL: this process alone (stage_join) */
    struct progress *progress;
};

/* Makes the recipe from in and opens the progress output. *j is zeroed by the caller. Call
 * job_close() whatever the result. ERR_USAGE for bad keys or values. */
enum err job_open(struct job *j, const struct recipe_input *in,
                  const struct job_options *options);
/* Does the same with a given recipe, which is copied. */
enum err job_open_recipe(struct job *j, const struct recipe *recipe,
                         const struct job_options *options);
void job_close(struct job *j);

/* Also reads the weights outside the blocks: ERR_FORMAT if one is not finite, as no later step
 * would name it. With weights that another tool quantized it also sets weights.* of the recipe:
 * ERR_USAGE for a key that says something else. ERR_MISMATCH if the full-precision model has other
 * sizes. */
enum err job_open_model(struct job *j);
/* Also fills settings and refine, with compute resolved. */
enum err job_open_device(struct job *j);
/* Returns ERR_USAGE if the job has no text. needs names the use of the text, for the
 * message. */
enum err job_check_text(const struct job *j, const char *needs);
/* Returns ERR_USAGE if the texts have shares, which only windows of calibration have. what
 * names the use of the text, for the message. */
enum err job_refuse_shares(const struct job *j, const char *what);
/* Tokenizes the texts of --data or calibration.data. Keeps what the job has already: ids,
 * ids_crc, text, n_texts and tokenizer. Requires j->arch; refuses ids beyond its
 * vocabulary. */
enum err job_read_text(struct job *j);
/* Draws the calibration windows at random, as the literature does, and those of refinement,
 * each from every text by its share. The guard's windows overlap none that refinement
 * learns from. A job that imports its blocks has no calibration windows. */
enum err job_draw_windows(struct job *j);

/* Makes the identity of a calibration: configuration, checkpoint, tokenizer and text, and the
 * imported artifact if there is one. Reads the whole checkpoint once, unless
 * options.model_crc is known. Release *out with json_decref. */
enum err job_identity(json_t **out, struct job *j);
/* Makes what the identity and the manifest say of weights that another tool quantized, {"format",
 * "projections", "groups", "rounded_scales", "mirrored_groups"}: a new reference. NULL: the job
 * has none, or memory is out. */
json_t *job_given_json(const struct job *j);

#endif
