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

/* A name below is the one that a causal language model's checkpoint has, which the file may
 * spell in another way. */
struct hf_files {
    const char *entry;     /* "model.safetensors" or the index's name; static */
    struct st_file **file; /* [n_files], in name order, owned */
    int n_files;
    struct hf_place *place; /* every tensor once: by file, then in file order */
    struct hf_place *by_name;
    int64_t n_places;
    bool base_model;          /* stored names lack "model." */
    struct st_tensor *tensor; /* [n_places] what the places point to */
    char *names;              /* those that differ from the stored ones */
};

/* model.safetensors, or else every file that model.safetensors.index.json names; which
 * tensor is in which of them the files say, not the index. A tensor may be in two files if
 * its bytes are the same. Errors: ERR_NOT_FOUND, ERR_FORMAT, ERR_SUPPORT (weights of another
 * format, names that a wrapper gives). */
enum err hf_files_open(struct hf_files *out, const char *dir);
void hf_files_close(struct hf_files *f); /* accepts a zeroed or half-built one */
const struct hf_place *hf_files_find(const struct hf_files *f, const char *name);
/* Tensor `from`, which must be there, is called `to`, which must not, from now on. Places
 * that were found before become invalid. to: static. */
void hf_files_rename(struct hf_files *f, const char *from, const char *to);
/* Same type, shape and bytes? Their pages are dropped afterwards. */
bool hf_files_same(const struct hf_files *f, const struct hf_place *a,
                   const struct hf_place *b);
/* Continue *crc over every file's size and header, and its data when deep. */
enum err hf_files_crc(uint32_t *crc, const struct hf_files *f, bool deep);

/* Opens dir/name into f->file, which has room for it. */
enum err hf_files_add(struct hf_files *f, const char *dir, const char *name);
/* The tensors of all files into f->place, under their stored names. */
enum err hf_files_list(struct hf_files *f);

/* --- hf_index.c --------------------------------------------------------------------- */

/* Opens the shards that the index at path, in dir, names, and lists their tensors. */
enum err hf_index_open(struct hf_files *f, const char *dir, const char *path);

#endif
