/* SPDX-License-Identifier: MIT
 *
 * The tensor files of a Hugging Face model directory as one list of tensors. Private to
 * convert/checkpoint. */
#ifndef WKVQ_HF_FILES_H
#define WKVQ_HF_FILES_H

#include "convert/checkpoint/hf.h"

struct hf_place {
    const struct st_tensor *t;
    int file;
};

struct hf_files {
    const char *entry;     /* "model.safetensors" or the index's name; static */
    struct st_file **file; /* [n_files], in name order, owned */
    int n_files;
    struct hf_place *place; /* every tensor: by file, then in file order */
    struct hf_place *by_name;
    int64_t n_places;
};

/* model.safetensors, or else every file of model.safetensors.index.json, each tensor of
 * which must be where the index says. Errors: ERR_NOT_FOUND, ERR_FORMAT, ERR_SUPPORT
 * (weights of another format). */
enum err hf_files_open(struct hf_files *out, const char *dir);
void hf_files_close(struct hf_files *f); /* accepts a zeroed or half-built one */
const struct hf_place *hf_files_find(const struct hf_files *f, const char *name);
/* Continue *crc over every file's size and header, and its data when deep. */
enum err hf_files_crc(uint32_t *crc, const struct hf_files *f, bool deep);

#endif
