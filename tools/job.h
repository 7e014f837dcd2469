/* SPDX-License-Identifier: MIT
 *
 * What every command that runs a model opens: configuration, checkpoint, tokenizer, text,
 * device. Filled step by step, so that a mistake is reported before the work that comes
 * after it. */
#ifndef WKVQ_JOB_H
#define WKVQ_JOB_H

#include "convert/checkpoint/hf.h"
#include "tools/progress.h"
#include "tools/recipe.h"

struct job {
    const struct args *args;
    const char *model_dir;
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
    struct progress *progress;
};

/* Configuration and progress; a zeroed job comes first. Close it whatever the result. */
enum err job_open(struct job *j, const struct args *a, const char *model_dir);
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

/* What a calibration belongs to: configuration, checkpoint, tokenizer, text. Reads the
 * whole checkpoint once. */
enum err job_identity(json_t **out, struct job *j);

#endif
