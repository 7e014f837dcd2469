/* SPDX-License-Identifier: MIT
 *
 * manifest.json: what an artifact consists of, with the size and CRC-32 of every tensor and
 * file, and of itself. docs/artifact.md has the format. */
#ifndef WKVQ_MANIFEST_H
#define WKVQ_MANIFEST_H

#include "data/json.h"

#define MANIFEST_NAME "manifest.json"
#define MANIFEST_DIMS 8

struct manifest_file {
    const char *name; /* no path */
    uint64_t bytes;
    uint32_t crc;
};

struct manifest_tensor {
    const char *name, *file, *dtype;
    int n_dims;
    int64_t dim[MANIFEST_DIMS];
    uint64_t bytes;
    uint32_t crc;
};

struct manifest {
    char *text; /* owned, a JSON object */
    size_t bytes;
    json_t *root;                   /* owned; strings below are borrowed from it */
    struct manifest_tensor *tensor; /* owned, sorted by name */
    size_t n_tensors;
    struct manifest_file *file; /* owned, sorted by name */
    size_t n_files;
};

/* Parse and check DIR/manifest.json: its own CRC, structure, version, plain file names.
 * Errors: ERR_NOT_FOUND, ERR_FORMAT, ERR_SUPPORT for a later version. */
enum err manifest_open(struct manifest **out, const char *dir);
void manifest_close(struct manifest **m);
/* The manifest itself is known too. */
bool manifest_knows_file(const struct manifest *m, const char *name);
const struct manifest_file *manifest_find_file(const struct manifest *m, const char *name);
const struct manifest_tensor *manifest_find_tensor(const struct manifest *m,
                                                   const char *name);

struct manifest_input {
    const char *config_json, *provenance_json; /* JSON objects; NULL: {} */
    const struct manifest_tensor *tensor;
    size_t n_tensors;
    const struct manifest_file *file;
    size_t n_files;
};
/* Write DIR/manifest.json; *bytes is its size. dir NULL: only the size is computed, for
 * which CRCs need not be known. Errors: ERR_USAGE when an input is not a JSON object,
 * ERR_IO. */
enum err manifest_write(uint64_t *bytes, const char *dir, const struct manifest_input *in);

#endif
