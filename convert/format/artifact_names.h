/* SPDX-License-Identifier: MIT
 *
 * The names of an artifact's files, and whether a directory is an artifact. Exported and folded
 * checkpoints have the same names. */
#ifndef WKVQ_ARTIFACT_NAMES_H
#define WKVQ_ARTIFACT_NAMES_H

#include "kernels/base/error.h"

#include <stdbool.h>

#define ARTIFACT_INDEX_NAME "model.safetensors.index.json"

/* *yes = dir has our quantization_config in config.json, even if its manifest is missing
 * (artifact_open() refuses it then). Any other directory is simply not an artifact. Errors:
 * ERR_MEMORY, ERR_IO, ERR_USAGE if that cannot be determined. */
enum err artifact_is(bool *yes, const char *dir);
/* Returns true if the writer of an artifact or of a checkpoint uses this file name,
 * including manifest.json. */
bool artifact_file_name(const char *name);
/* Returns the i-th name of the files of the tokenizer and of generation, which an output copies
 * from its checkpoint; NULL after the last. */
const char *artifact_copied_name(size_t i);
/* Writes the name of a shard: "model.safetensors" if it is the only one, else
 * "model-00001-of-00003.safetensors". */
void artifact_shard_name(char out[64], int shard, int n_shards);

#endif
