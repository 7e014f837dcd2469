/* SPDX-License-Identifier: MIT
 *
 * An artifact's files beside the tensors: config.json, the tokenizer, the shards' index. */
#ifndef WKVQ_ARTIFACT_FILES_H
#define WKVQ_ARTIFACT_FILES_H

#include "convert/artifact/artifact_plan.h"
#include "convert/artifact/manifest.h"

#define ARTIFACT_FILES_MAX 16 /* beside the shards */

/* Write config.json and copy the tokenizer's files from model_dir to dir; file
 * [ARTIFACT_FILES_MAX] says what was written. */
enum err artifact_write_files(const char *dir, const char *model_dir, const struct arch *a,
                              const struct artifact_settings *s, struct manifest_file *file,
                              size_t *n);
/* The tokenizer's files alone, as many as model_dir has. */
enum err artifact_copy_tokenizer(const char *dir, const char *model_dir,
                                 struct manifest_file *file, size_t *n);
/* Is name one that an artifact's writer, or a checkpoint's, gives to a file? manifest.json
 * is one too. */
bool artifact_file_name(const char *name);
/* model.safetensors.index.json of a plan of several shards. */
enum err artifact_write_index(const char *dir, const struct out_plan *p,
                              struct manifest_file *file);

#endif
