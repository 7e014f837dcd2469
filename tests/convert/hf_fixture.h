/* SPDX-License-Identifier: MIT
 *
 * A Hugging Face directory for a test: config.json and tensors of a tiny llama. */
#ifndef WKVQ_TESTS_HF_FIXTURE_H
#define WKVQ_TESTS_HF_FIXTURE_H

#include "convert/checkpoint/hf.h"

extern char hf_dir[64], hf_log[1024]; /* hf_log: the last line */

/* cmocka's setup and teardown of the directory. */
int hf_make_dir(void **state);
int hf_drop_dir(void **state);

void hf_put(const char *name, const char *text);
void hf_drop(const char *name);

/* Sizes that a file always has. */
#define SIZES                                                                              \
    "\"hidden_size\":32,\"intermediate_size\":48,\"num_hidden_layers\":2,"                 \
    "\"num_attention_heads\":4,\"vocab_size\":64"

/* Reads a config.json of type and SIZES, then further members (starting with a comma). */
struct arch hf_read(const char *type, const char *more);

/* Checks that hf_open() fails with e and both words in the message. */
void hf_refuse_open(enum err want, const char *word1, const char *word2);

#define HF_MAX_TENSORS 64
struct hf_spec {
    char name[HF_MAX_TENSORS][96];
    struct st_entry e[HF_MAX_TENSORS];
    uint8_t fill[HF_MAX_TENSORS]; /* every byte of the tensor */
    int n;
};

/* A tensor of F16 zeros; cols 0: a vector. */
struct st_entry *hf_add(struct hf_spec *s, const char *name, int64_t rows, int64_t cols);
/* The tensors of hf_read("llama", ""): D = 32, F = 48, V = 64, two layers. */
void hf_llama_tensors(struct hf_spec *s);
/* Tensors [first, first + n) into a file of hf_dir. */
void hf_write(const char *file, const struct hf_spec *s, int first, int n);
struct st_entry *hf_entry(struct hf_spec *s, const char *name);

#endif
