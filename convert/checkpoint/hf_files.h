/* SPDX-License-Identifier: MIT
 *
 * Presents the tensor files of a Hugging Face model directory as one list of tensors.
 * Private to convert/checkpoint. */
#ifndef WKVQ_HF_FILES_H
#define WKVQ_HF_FILES_H

#include "convert/checkpoint/hf.h"

struct hf_place {
    const struct st_tensor *t;
    int file;
};

/* Names below are those of a causal language model; the names in the files may differ. */
struct hf_files {
    const char *entry;     /* "model.safetensors" or the index's name; static */
    struct st_file **file; /* [n_files], in name order, owned */
    int n_files;
    struct hf_place *place; /* all tensors once: by file, then in file order; parts of fused
                               tensors come last */
    struct hf_place *by_name;
    int64_t n_places;
    const struct st_tensor **stored; /* [n_stored] by place, as the files have them */
    int64_t n_stored;
    bool base_model;          /* stored names lack "model." */
    struct st_tensor *tensor; /* [n_places] targets of the places */
    char *names;              /* the names that differ from the stored ones, owned */
    char *part_names;         /* those of the parts of fused tensors, owned */
};

/* Opens model.safetensors, or else every file that model.safetensors.index.json names.
 * Tensors are found in the files; the places in the index are not used. A tensor may be in
 * two files if its bytes are equal. Errors: ERR_NOT_FOUND, ERR_FORMAT, ERR_MEMORY,
 * ERR_SUPPORT (weights of another format, names of a wrapper). */
enum err hf_files_open(struct hf_files *out, const char *dir);
void hf_files_close(struct hf_files *f); /* accepts a zeroed or half-built one */
const struct hf_place *hf_files_find(const struct hf_files *f, const char *name);
/* Finds a tensor that a model of arch a needs. ERR_NOT_FOUND with name and dir if it is missing. */
enum err hf_files_need(const struct hf_place **out, const struct hf_files *f,
                       const char *name, const char *dir, const struct arch *a);
/* Renames tensor `from`, which must exist, to `to`, which must not. Places found before
 * become invalid. to: static. */
void hf_files_rename(struct hf_files *f, const char *from, const char *to);
/* Drops the tensors without a name. Places found before become invalid. */
void hf_files_compact(struct hf_files *f);
/* Returns true if type, shape and bytes are equal. Pages that were read are released. */
bool hf_files_same(const struct hf_files *f, const struct hf_place *a,
                   const struct hf_place *b);
/* Returns tensor i of the files, in their order and as they have it; NULL beyond the last. One that
 * is in two files counts once. */
const struct st_tensor *hf_files_stored(const struct hf_files *f, int64_t i);
/* Updates *crc with every file's size and header. deep: with the data, too. */
enum err hf_files_crc(uint32_t *crc, const struct hf_files *f, bool deep);

/* Opens dir/name and appends it to f->file, which must have room. */
enum err hf_files_add(struct hf_files *f, const char *dir, const char *name);
/* Lists the tensors of all files in f->place, under their stored names. */
enum err hf_files_list(struct hf_files *f);

/* --- hf_index.c --------------------------------------------------------------------- */

/* Opens the shards that the index at path, in dir, names, and lists their tensors. */
enum err hf_index_open(struct hf_files *f, const char *dir, const char *path);

#endif
