/* SPDX-License-Identifier: MIT
 *
 * manifest.json: the contents of an artifact, with size and CRC-32 of every tensor and
 * file, and of the manifest itself. docs/artifact.md has the format. An open manifest is
 * read-only. */
#ifndef WKVQ_MANIFEST_H
#define WKVQ_MANIFEST_H

#include "data/json.h"

#define MANIFEST_NAME "manifest.json"
#define MANIFEST_DIMS 8

struct manifest_file {
    const char *name; /* without a directory */
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

/* Parses and checks DIR/manifest.json: its own CRC, structure, version, plain file names.
 * Errors: ERR_NOT_FOUND, ERR_FORMAT, ERR_MEMORY, ERR_SUPPORT for a later version. Close
 * with manifest_close(). */
enum err manifest_open(struct manifest **out, const char *dir);
void manifest_close(struct manifest **m);
/* Returns true for a file that the manifest lists, and for the manifest itself. */
bool manifest_knows_file(const struct manifest *m, const char *name);
const struct manifest_file *manifest_find_file(const struct manifest *m, const char *name);
const struct manifest_tensor *manifest_find_tensor(const struct manifest *m,
                                                   const char *name);

struct manifest_input {
    const char *config_json, *provenance_json; /* JSON objects; NULL represents {} */
    const struct manifest_tensor *tensor;
    size_t n_tensors;
    const struct manifest_file *file;
    size_t n_files;
};
/* Writes DIR/manifest.json; *bytes is its size. dir NULL: only the size is computed, and
 * CRCs are not used. Errors: ERR_USAGE if an input is not a JSON object, ERR_IO,
 * ERR_MEMORY. */
enum err manifest_write(uint64_t *bytes, const char *dir, const struct manifest_input *in);

#endif
