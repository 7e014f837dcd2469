/* SPDX-License-Identifier: MIT
 *
 * The configuration of a run: one table of keys, read from YAML and --set, dumped as JSON
 * into states and artifacts. configs/reference.yaml is printed from the same table. */
#ifndef WKVQ_RECIPE_H
#define WKVQ_RECIPE_H

#include "calib/calib.h"
#include "data/corpus.h"
#include "data/tokenizer/tokenizer.h"
#include "tools/cli/choices.h"

#include <jansson.h>
#include <stdio.h>

#define RECIPE_NAME_MAX 128

struct recipe_files {
    char **path; /* [n] and the list itself owned */
    int n;
};

/* Values as typed; choices are the index in their key's list. */
struct recipe {
    struct recipe_files data;
    int64_t samples, seqlen, epochs, seed;
    int join, bos;                                /* enum corpus_join, enum bos_rule */
    char text_field[RECIPE_NAME_MAX];             /* of JSON rows; "": the usual ones */
    int weight_method, weight_round, weight_init; /* enum weight_method, ... */
    int64_t weight_bits, weight_group;
    double damp;
    bool act_order;
    int kv_method, kv_init, key_stage, rotate;
    int64_t kv_bits, kv_group, window, sink;
    bool past_only, learn;
    int64_t activation_bits;
    int64_t crr_blocks;
    int crr_terms, crr_loss;
    struct mix *weight_mix, *kv_mix; /* owned; NULL: none */
    double lr_round, lr_clip, lr_smooth, lr_shift, weight_decay;
    int schedule;
    int device, compute;            /* enum recipe_device, enum recipe_compute */
    int64_t threads;                /* 0: all cores */
    uint64_t memory, device_memory; /* bytes, 0: auto */
};

enum key_kind {
    KEY_INT,
    KEY_REAL,
    KEY_BOOL,
    KEY_CHOICE,
    KEY_BITS,
    KEY_BYTES,
    KEY_NAME,
    KEY_MIX,
    KEY_FILES
};

/* All that is known of a key stands in its row of recipe_key. A new key is this row, its
 * field of struct recipe, its use (recipe_settings.c) and configs/reference.yaml, which
 * `wkvq --print-reference` prints and a test compares. */
struct recipe_key {
    const char *name; /* "weights.bits" */
    enum key_kind kind;
    size_t offset;           /* into struct recipe */
    const char *value;       /* the default, as typed; "" for none */
    double lo, hi;           /* KEY_INT, KEY_REAL: both ends allowed */
    enum mix_of of;          /* KEY_MIX */
    const char *choices;     /* KEY_CHOICE: "a|b" */
    const char *planned;     /* values that a later version is to have: "c|d" */
    bool affects_speed_only; /* no part of a state's, artifact's or sweep cell's identity.
                                run.device and run.threads also change the last bits */
    const char *help;        /* one line for the reference */
};
extern const struct recipe_key recipe_key[];
extern const int recipe_n_keys;

/* Every key's default. */
void recipe_init(struct recipe *r);
void recipe_free(struct recipe *r); /* accepts a zeroed one */

/* Set one key from text; where starts the messages ("--set", "w4.yaml: line 3"). Errors:
 * ERR_USAGE (unknown key with the nearest known one, wrong value with what is wanted),
 * ERR_SUPPORT for values that this version does not have. */
enum err recipe_set(struct recipe *r, const char *name, const char *text,
                    const char *where);
/* preset: several keys at once. Errors as recipe_set has them. */
enum err recipe_preset(struct recipe *r, const char *name, const char *where);
/* preset: NAME is taken first, wherever it stands. */
enum err recipe_load_yaml(struct recipe *r, const char *path);
/* What recipe_json wrote. Errors: ERR_FORMAT with where and the key. */
enum err recipe_load_json(struct recipe *r, const json_t *config, const char *where);

/* What a recipe is made of. Strings and lists are borrowed. */
struct recipe_input {
    const char *config;     /* YAML file; NULL: the defaults */
    const char *const *set; /* [n_set] "KEY=VALUE"; the last of a key wins */
    int n_set;
    /* Short for a key of their own; they win over set. */
    int64_t threads;                              /* -1: not given */
    uint64_t memory;                              /* 0: not given */
    const char *device, *join, *bos, *text_field; /* NULL: not given */
    const char *const *data;                      /* [n_data] */
    int n_data;                                   /* 0: not given */
};

/* Defaults, the preset of set, else of config, then config, set in order, then what is short
 * for a key. r is initialized here; free it whatever the result. */
enum err recipe_from_input(struct recipe *r, const struct recipe_input *in);
/* r is initialized here; free it whatever the result. */
enum err recipe_copy(struct recipe *r, const struct recipe *from);

enum err recipe_files_add(struct recipe_files *files, const char *path);
void recipe_files_clear(struct recipe_files *files); /* accepts a zeroed one */

/* {"calibration": {...}, ...}; identity: only the keys that decide the result. */
enum err recipe_json(json_t **out, const struct recipe *r, bool identity);
/* The value of a key as one would type it. Owned by the caller (mem_free). */
enum err recipe_text(char **out, const struct recipe *r, const struct recipe_key *k);

/* Their mixes are the recipe's. */
struct weight_spec recipe_weight_spec(const struct recipe *r);
struct kv_spec recipe_kv_spec(const struct recipe *r);
/* Some layer's keys or values. */
bool recipe_quantizes_kv(const struct recipe *r);
/* ERR_SUPPORT for settings that simulation alone knows, not the packed runtime. */
enum err recipe_check_runtime(const struct recipe *r);
/* ERR_USAGE where a mix names a layer that the model lacks. */
enum err recipe_check_layers(const struct recipe *r, const struct arch *a);
const char *recipe_device(const struct recipe *r);
/* Settings on device d: compute resolved; memory_bytes is the whole budget, of which
 * the caller takes off what is not streams. */
struct calib_settings recipe_settings(const struct recipe *r, const struct dev *d);
/* d NULL: auto is what a device of the recipe's kind would likely take. */
enum dtype recipe_act(const struct recipe *r, const struct dev *d);
/* run.memory, or 75% of memory_available(). */
uint64_t recipe_memory(const struct recipe *r);

/* The text of configs/reference.yaml. */
void recipe_print_reference(FILE *f);
/* The same as man page source, on stdout. */
void recipe_print_man(void);

#endif
