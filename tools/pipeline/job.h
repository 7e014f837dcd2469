/* SPDX-License-Identifier: MIT
 *
 * What every command that runs a model opens: configuration, checkpoint, tokenizer, text,
 * device. Filled step by step, so that a mistake is reported before the work that comes
 * after it. */
#ifndef WKVQ_JOB_H
#define WKVQ_JOB_H

#include "convert/checkpoint/hf.h"
#include "tools/cli/progress.h"
#include "tools/recipe/recipe.h"

/* What a job is told beside its recipe. Strings are borrowed. */
struct job_options {
    const char *model_dir;
    bool quiet;                /* no lines of progress */
    const char *log_json;      /* file for progress; NULL: none */
    bool plan;                 /* estimates are wanted, not the work */
    bool json;                 /* reports are one JSON object */
    uint64_t shard_bytes;      /* of an artifact's files; 0: the writer's choice */
    const uint32_t *model_crc; /* hf_identity of model_dir where it is known; NULL */
};

struct job {
    struct job_options options;
    const char *model_dir; /* options.model_dir */
    struct recipe recipe;
    struct hf_model *model; /* NULL before job_open_model */
    struct arch arch;
    struct dev *dev;
    struct tokenizer *tokenizer;
    struct token_ids ids; /* the whole text */
    uint32_t ids_crc;
    int64_t *offset;  /* [recipe.samples] of the calibration windows */
    int32_t *windows; /* [samples][seqlen] */
    struct calib_settings settings;
    uint64_t state_bytes; /* that the calibration's state will still need on disk */
    struct progress *progress;
};

/* Configuration and progress; a zeroed job comes first. Close it whatever the result. */
enum err job_open(struct job *j, const struct recipe_input *in,
                  const struct job_options *options);
/* The same with a recipe that was made before; j has its own copy. */
enum err job_open_recipe(struct job *j, const struct recipe *recipe,
                         const struct job_options *options);
void job_close(struct job *j);

enum err job_open_model(struct job *j);
enum err job_open_device(struct job *j); /* and settings, compute resolved */
/* Is there a text at all? needs says what for. */
enum err job_check_text(const struct job *j, const char *needs);
/* Text to ids: --data or calibration.data; ids that are there already, with their tokenizer
 * and ids_crc, are kept. j->arch must be known: ids beyond its vocabulary are refused. */
enum err job_read_text(struct job *j);
/* The literature's random windows. */
enum err job_draw_windows(struct job *j);

/* What a calibration belongs to: configuration, checkpoint, tokenizer, text. Reads the whole
 * checkpoint once, unless options.model_crc is known. */
enum err job_identity(json_t **out, struct job *j);

#endif
