/* SPDX-License-Identifier: MIT
 *
 * What a subcommand is, and its options as tables: the parser, --help, the man page and
 * shell completion all come from them. */
#ifndef WKVQ_OPT_H
#define WKVQ_OPT_H

#include "kernels/base/error.h"

#include <stdbool.h>
#include <stdint.h>

#define TEXT_LIST_MAX 128

struct text_list {
    const char *item[TEXT_LIST_MAX]; /* borrowed from argv */
    int n;
};

/* Every option of every command has its place here; a command's table says which of them
 * it takes, and a field keeps its default otherwise. Strings are borrowed from argv. */
struct args {
    const struct command *cmd;
    struct text_list pos; /* what is left: MODEL_DIR and the like */
    bool json, quiet, verbose;
    const char *log_json;
    const char *config;
    struct text_list set;
    const char *out, *state, *against;
    struct text_list data;
    struct text_list eval_data;
    struct text_list stop; /* strings that end what is generated */
    const char *model, *base, *title, *max_increase, *work;
    const char *labels, *prompts, *max_gen;
    const char *task, *join, *bos, *prompt, *shape, *compute, *simulate, *score, *device,
        *tokenizer, *text_field;
    const char *batch, *length; /* lists */
    bool plan, keep_state, keep, force, decode, stats, memory_table, per_kind, uniform;
    int64_t limit;
    int64_t windows, ctx, chunk, kv_bits, n_tokens, top_k, seed, seqlen, depth;
    int64_t parallel, samples, epochs, blocks, layers, steps, threads, logit_tokens;
    double temperature, top_p, max_kl, max_gap, max_bits, max_kv_bits;
    uint64_t shard_bytes, memory;
};

enum opt_kind { OPT_HEADING, OPT_FLAG, OPT_TEXT, OPT_INT, OPT_REAL, OPT_BYTES, OPT_LIST };

struct opt {
    enum opt_kind kind;
    char letter;         /* 0: none */
    const char *name;    /* long name */
    const char *arg;     /* name of the value in --help */
    size_t offset;       /* into struct args */
    const char *value;   /* the default, as one would type it; NULL: none */
    double lo, hi;       /* OPT_INT, OPT_REAL: both ends allowed */
    const char *choices; /* OPT_TEXT: "a|b|c", NULL: anything */
    const char *help;    /* a sentence without its full stop; a heading's text */
};

struct command {
    const char *name;
    const char *operands;            /* for the usage line: "MODEL_DIR" */
    const char *summary;             /* one line */
    const char *details;             /* further lines and an example */
    const struct opt *const *groups; /* tables of options, NULL-terminated; each table ends
                                        with {0} */
    int min_pos, max_pos;
    enum err (*run)(struct args *a);
};

/* Tables that several commands share. */
extern const struct opt opt_report[];   /* --json, --quiet, --verbose */
extern const struct opt opt_recipe[];   /* --config, --set and their shortcuts */
extern const struct opt opt_data[];     /* --data, --text-field, --join, --bos */
extern const struct opt opt_progress[]; /* --log-json */

/* Parse argv[1..] of a command into a, which need not be initialized. A mistake ends the
 * process with two lines on stderr and status 2, --help with status 0. */
void opt_parse(struct args *a, const struct command *cmd, int argc, char **argv);

/* "8G", "512M", "1.5g", "4096" in bytes (powers of 1024). false: not a size. */
bool opt_bytes(uint64_t *out, const char *text);
/* Index of word in "a|b|c", -1 if it is not there. */
int opt_choice(const char *choices, const char *word);
/* The index'th word of "a|b|c", fewer than 32 bytes; valid until the thread's next call. */
const char *opt_choice_name(const char *choices, int index);
/* "a|b|c" as "a, b, c" in out. */
void opt_choices_text(char *out, size_t n, const char *choices);

/* Print a command's options for shell completion (one a line) or as man page source. */
void opt_print_words(const struct command *cmd);
void opt_print_man(const struct command *cmd);

#endif
