/* SPDX-License-Identifier: MIT
 *
 * The files of an artifact other than tensors: config.json, the tokenizer's, the index. */
#ifndef WKVQ_ARTIFACT_FILES_H
#define WKVQ_ARTIFACT_FILES_H

#include "convert/artifact/writer.h"
#include "convert/format/manifest.h"
#include "convert/output/out_plan.h"

#define ARTIFACT_FILES_MAX 16 /* files other than shards */

/* For all functions: if dir is NULL, nothing is written and CRCs are 0. Names and sizes are
 * those of the files that would be written. */

/* Writes config.json and copies the tokenizer's files from model_dir to dir.
 *   file  [ARTIFACT_FILES_MAX], *n of them are set: what was written
 * Errors: ERR_IO, ERR_FORMAT for the checkpoint's config.json, ERR_MEMORY. */
enum err artifact_write_files(const char *dir, const char *model_dir, const struct arch *a,
                              const struct artifact_settings *s, struct manifest_file *file,
                              size_t *n);
/* Makes config.json's object o agree with the tensors of a, where the checkpoint's does not: ties,
 * the dtype of a Gemma, and a model without the class of its head, as hf_open() found them. False:
 * out of memory. */
bool artifact_config_truth(json_t *o, const struct arch *a);
/* Copies only the tokenizer's files, as many as model_dir has. */
enum err artifact_copy_tokenizer(const char *dir, const char *model_dir,
                                 struct manifest_file *file, size_t *n);
/* Writes model.safetensors.index.json for a plan of several shards. */
enum err artifact_write_index(const char *dir, const struct out_plan *p,
                              struct manifest_file *file);

#endif
