/* SPDX-License-Identifier: MIT
 *
 * The configuration of a run, defined by one table of keys. It is read from YAML and --set,
 * and stored as JSON in states and artifacts. configs/reference.yaml is printed from the
 * same table. The functions have no shared state; a recipe belongs to one thread. */
#ifndef WKVQ_RECIPE_H
#define WKVQ_RECIPE_H

#include "calib/calib.h"
#include "calib/refine/refine.h"
#include "convert/checkpoint/hf.h"
#include "data/corpus.h"
#include "data/tokenizer/tokenizer.h"
#include "tools/cli/choices.h"
#include "tools/recipe/recipe_files.h"

#include <jansson.h>
#include <stdio.h>

#define RECIPE_NAME_MAX 128
#define RECIPE_AUTO (-1) /* value of a KEY_COUNT that is set to auto */

/* Values as typed. A choice is the index in its key's list, which equals its enum. */
struct recipe {
    struct recipe_files data;
    int64_t samples, seqlen, epochs, batch, seed;
    int64_t eval_samples;             /* RECIPE_AUTO; 0: all */
    int join, bos;                    /* enum corpus_join, enum bos_rule */
    char text_field[RECIPE_NAME_MAX]; /* field of JSON rows; "": the default ones */
    int weight_method, weight_round, weight_init; /* enum weight_method, ... */
    int64_t weight_bits, weight_group, scale_bits, head_bits, head_group;
    double damp;
    bool act_order;
    int kv_method, kv_init, key_stage, rotate, target; /* enum kv_method, ... */
    int64_t kv_bits, kv_group, window, sink;
    bool past_only, learn;
    int64_t activation_bits;
    int64_t crr_blocks;
    int crr_terms, crr_loss;
    struct mix *weight_mix, *kv_mix; /* owned; NULL: none */
    double lr_round, lr_clip, lr_smooth, lr_shift, weight_decay;
    int schedule;
    struct {
        int64_t samples, guard, seqlen, epochs, batch; /* samples 0: no refinement */
        int learn;                                     /* enum recipe_learn */
        double lr_scales, lr_norms, lr_smooth, lr_shift, lr_round, ce;
    } refine;
    int device, compute;            /* enum recipe_device, enum recipe_compute */
    int64_t threads;                /* 0: all cores */
    uint64_t memory, device_memory; /* bytes, 0: auto */
};

/* What refinement learns. LEARN_AUTO: LEARN_GIVEN if the weights are given, else LEARN_CACHE;
 * LEARN_GIVEN: norms and cache. */
enum recipe_learn {
    LEARN_AUTO,
    LEARN_GIVEN,
    LEARN_SCALES,
    LEARN_NORMS,
    LEARN_CACHE,
    LEARN_ROUNDING
};

enum key_kind {
    KEY_INT,
    KEY_COUNT, /* KEY_INT, or auto */
    KEY_REAL,
    KEY_BOOL,
    KEY_CHOICE,
    KEY_BITS,
    KEY_BYTES,
    KEY_NAME,
    KEY_MIX,
    KEY_FILES
};

/* One key. Each key is a row of recipe_key. A new key needs this row, a field of struct
 * recipe, its use (recipe_settings.c) and a line in configs/reference.yaml. `wkvq
 * --print-reference` prints that file, and a test compares it. */
struct recipe_key {
    const char *name; /* "weights.bits" */
    enum key_kind kind;
    size_t offset;     /* offset in struct recipe */
    const char *value; /* default, as typed; "": none */
    /* KEY_INT, KEY_COUNT, KEY_REAL: inclusive; RANGE_* of calib/calib.h */
    double lo, hi;
    /* KEY_REAL: the least value beside 0, and why; 0: lo */
    double least;
    const char *why;
    enum mix_of of;      /* KEY_MIX */
    const char *choices; /* KEY_CHOICE: "a|b" */
    const char *planned; /* values of a later version: "c|d" */
    /* not part of the identity of a state, artifact or sweep cell. run.device and
     * run.threads also change the last bits */
    bool affects_speed_only;
    /* Absent from JSON while it has its default value, so that states and artifacts from before
     * the key keep their bytes and identities. For every key that is added to the table. */
    bool omit_default;
    const char *help; /* one line for the reference */
};
extern const struct recipe_key recipe_key[];
extern const int recipe_n_keys;

/* Sets every key to its default. */
void recipe_init(struct recipe *r);
void recipe_free(struct recipe *r); /* accepts a zeroed one */

/* Sets one key from text. where starts the messages ("--set", "w4.yaml: line 3").
 * ERR_USAGE: unknown key, with the closest known one, or a wrong value, with what is
 * wanted. ERR_SUPPORT: a value of a later version. */
enum err recipe_set(struct recipe *r, const char *name, const char *text,
                    const char *where);
#define RECIPE_ALIKE_MAX 16
/* Finds the keys whose last part or whole name is `text`, with '-' or '.' for '_': "group-size" is
 * that of weights, head and cache. misspelt: those whose last part is the closest to it. Returns
 * their number. */
int recipe_alike(const struct recipe_key *found[RECIPE_ALIKE_MAX], const char *text,
                 bool misspelt);
/* Writes "'weights.bits', 'head.bits' or 'kv.bits'". */
void recipe_alike_text(char *out, size_t size, const struct recipe_key *const *found,
                       int n);
/* Writes "--set weights.bits=4 (or head.bits, kv.bits)". value NULL: not known. */
void recipe_set_text(char *out, size_t size, const struct recipe_key *const *found, int n,
                     const char *value);
/* Sets the keys of a preset. Errors as for recipe_set. */
enum err recipe_preset(struct recipe *r, const char *name, const char *where);
/* Sets the keys of a YAML file. Its preset is applied first, wherever it stands. ERR_USAGE if a key
 * stands twice, in its section and with it. */
enum err recipe_load_yaml(struct recipe *r, const char *path);
/* Sets the keys of an object that recipe_json made. A key that is younger than the object
 * gets the value that was fixed before. ERR_FORMAT names where and the key. */
enum err recipe_load_json(struct recipe *r, const json_t *config, const char *where);

/* Sources of a recipe. Strings and lists are borrowed. */
struct recipe_input {
    const char *config;     /* YAML file; NULL: the defaults */
    const char *const *set; /* [n_set] "KEY=VALUE"; the last of a key wins */
    int n_set;
    const char *const
        *set_from; /* [n_set] where each was found, for messages; NULL: --set */
    /* Shortcuts for a key each; they override set. */
    int64_t threads;                              /* -1: not given */
    uint64_t memory;                              /* 0: not given */
    const char *device, *join, *bos, *text_field; /* NULL: not given */
    const char *const *data;                      /* [n_data] FILE or FILE:SHARE */
    int n_data;                                   /* 0: not given */
};

/* Makes a recipe in this order: defaults, the preset of set or else of config, config, set
 * in order, shortcuts. set is a layer above config: if it has bits or a group size of a side and
 * no mix, config's mix of that side ends, and a line says so. Initializes r; free it whatever the
 * result. */
enum err recipe_from_input(struct recipe *r, const struct recipe_input *in);
/* Does the same over the values of r instead of the defaults, without that line. */
enum err recipe_apply(struct recipe *r, const struct recipe_input *in);
/* The same without recipe_take_target(): only what was typed. */
enum err recipe_apply_typed(struct recipe *r, const struct recipe_input *in);
/* Gives the cache the settings of the engine that kv.target names. ERR_USAGE for a key that
 * has neither its default nor the engine's value. recipe_apply() ends with it. */
enum err recipe_take_target(struct recipe *r);
/* Returns the key by which a layer of "KEY=VALUE" strings ends the mix of earlier layers: bits or
 * group size of the side. NULL: it has neither, or a mix of its own. */
const char *recipe_ends_mix(enum mix_of of, const char *const *set, int n);
bool recipe_has_mix(const struct recipe *r, enum mix_of of);
/* Removes the mixes of r that in->set ends. say: prints a line for each. */
void recipe_end_mixes(struct recipe *r, const struct recipe_input *in, bool say);
/* Returns "weights.mixed" or "kv.mixed". */
const char *recipe_mix_key(enum mix_of of);
/* Copies a recipe. Initializes r; free it whatever the result. */
enum err recipe_copy(struct recipe *r, const struct recipe *from);

/* Makes {"calibration": {...}, ...}. identity: only the keys that affect the result.
 * Release *out with json_decref. */
enum err recipe_json(json_t **out, const struct recipe *r, bool identity);
/* Makes {"kv.rotate": "kv", ...}: the keys that affect the result and whose effect is not that of
 * their default. Release *out with json_decref. */
enum err recipe_changes(json_t **out, const struct recipe *r);
/* Writes the value of a key as one would type it. Release *out with mem_free. */
enum err recipe_text(char **out, const struct recipe *r, const struct recipe_key *k);

/* Return the formats of weights and cache. Their mixes are borrowed from the recipe. */
struct weight_spec recipe_weight_spec(const struct recipe *r);
struct kv_spec recipe_kv_spec(const struct recipe *r);
/* Returns whether the keys or values of any layer are quantized. */
bool recipe_quantizes_kv(const struct recipe *r);
/* Returns whether an artifact can hold the cache's settings; others are calibrated, then simulated
 * or folded. */
bool recipe_makes_artifact(const struct recipe *r);
/* Returns ERR_SUPPORT for settings that only the simulation supports. */
enum err recipe_check_runtime(const struct recipe *r);
/* The same, and for settings that an artifact must have for the packed runtime to follow them. */
enum err recipe_check_packed(const struct recipe *r);
/* Returns ERR_USAGE unless run.device is the CPU, where the packed runtime runs. what: "the
 * packed runtime" or a part of it, for the message. */
enum err recipe_check_cpu(const struct recipe *r, const char *what);
/* Sets weights.* to what the packed weights of m are. dir: m's, for messages. ERR_USAGE for a key
 * that says something else and is not at its default. */
enum err recipe_take_formats(struct recipe *r, const struct hf_model *m, const char *dir);

/* What a command runs whose quantization is decided already, so that keys cannot choose it. */
struct recipe_fixed {
    const struct recipe *recipe; /* its configuration; NULL: full precision */
    const char *name;            /* of the artifact, state or checkpoint, for messages */
    bool rounds_inputs;          /* activations.bits still has an effect */
    bool takes_target;           /* kv.target still replaces the cache */
    const char *advice;          /* what to do instead, the end of the message */
};

/* Returns ERR_USAGE if in sets a key of weights, head, kv or activations that has no effect on f
 * and differs from it. In full precision, no key of a side matters once its bits are set to 16. */
enum err recipe_check_fixed(const struct recipe_fixed *f, const struct recipe_input *in);
/* Returns ERR_USAGE if a mix names a layer that the model lacks. */
enum err recipe_check_layers(const struct recipe *r, const struct arch *a);
const char *recipe_device(const struct recipe *r);
/* Returns how many samples the loss is measured on. 0: all, also if as many are named. */
int64_t recipe_eval_samples(const struct recipe *r);
/* The type of activations in the packed runtime: F32 unless run.compute is bf16. */
enum dtype recipe_runtime_act(const struct recipe *r);
/* Makes the settings for device d, with compute resolved. memory_bytes is the whole budget;
 * the caller subtracts what is not for streams. */
struct calib_settings recipe_settings(const struct recipe *r, const struct dev *d);
/* Returns whether the recipe refines end to end after calibration. */
bool recipe_refines(const struct recipe *r);
/* Returns ERR_SUPPORT for settings that refinement does not support, ERR_USAGE if it would have
 * nothing to learn. OK if the recipe does not refine. */
enum err recipe_check_refine(const struct recipe *r);
/* Makes the settings of refinement on device d. */
struct refine_settings recipe_refine_settings(const struct recipe *r, const struct dev *d);
/* Returns the activation type. d NULL: for auto, the likely type of a device of the
 * recipe's kind. */
enum dtype recipe_act(const struct recipe *r, const struct dev *d);
/* Returns run.memory in bytes, or 75% of memory_available(). */
uint64_t recipe_memory(const struct recipe *r);

/* Prints the text of configs/reference.yaml. */
void recipe_print_reference(FILE *f);
/* Prints the keys as man page source on stdout. */
void recipe_print_man(void);
/* Print what bash completes after --set: "KEY=" for every key, one a line, and a case of the
 * values of each key that has choices. */
void recipe_print_key_words(void);
void recipe_print_value_words(void);

#endif
