/* SPDX-License-Identifier: MIT
 *
 * Subcommands and tables of their options. The parser, --help, the man page and shell
 * completion all use these tables. */
#ifndef WKVQ_OPT_H
#define WKVQ_OPT_H

#include "kernels/base/error.h"

#include <stdbool.h>
#include <stdint.h>

#define TEXT_LIST_MAX 128
#define OPTS_MAX 64 /* options of a command */

struct text_list {
    const char *item[TEXT_LIST_MAX]; /* borrowed from argv */
    int n;
};

/* Values of all options of all commands. A command's table names the options that it
 * accepts; the other fields keep their defaults. Strings are borrowed from argv. */
struct args {
    const struct command *cmd;
    /* all arguments, as the parser has ordered them; argv[0] is the command's name */
    int argc;
    char **argv;
    char *model_path[3];               /* of opt_find_models(), owned */
    const struct opt *given[OPTS_MAX]; /* each once */
    int n_given;
    struct text_list pos; /* remaining arguments, such as MODEL_DIR */
    bool json, quiet, verbose;
    const char *log_json;
    const char *config;
    struct text_list set;
    const char *out, *state, *against, *weights_from;
    struct text_list data;
    struct text_list eval_data;
    struct text_list stop; /* strings that end the generated text */
    const char *model, *base, *title, *max_increase, *work;
    const char *prompts, *max_gen;
    struct text_list labels, predictions, eval_text, zeroshot, longbench;
    const char *task, *join, *eval_join, *bos, *prompt, *prompt_file, *shape, *compute,
        *simulate, *score, *device, *tokenizer, *text_field;
    const char *format, *kv, *dtype, *base_model, *license;
    const char *gguf_weights, *gguf_pre, *gguf_vocab, *fold;
    struct text_list eval_report;
    const char *batch, *length; /* repeatable options */
    const char *slurm, *expect; /* NULL: not given */
    int64_t cell;
    bool print_cells;
    bool plan, keep_state, keep, force, decode, stats, tensors, no_check, memory_table,
        per_kind, uniform, no_trials, refine;
    int64_t limit, task_ctx;
    int64_t windows, ctx, chunk, kv_bits, n_tokens, top_k, seed, seqlen, depth;
    int64_t parallel, samples, epochs, blocks, layers, steps, threads, logit_tokens;
    double temperature, top_p, max_kl, max_gap, max_bits, max_kv_bits;
    uint64_t shard_bytes, memory;
};

enum opt_kind {
    OPT_HEADING,
    OPT_FLAG,
    OPT_TEXT,
    OPT_MAYBE, /* a text that may be missing, as in --slurm[=OPTIONS]; then "" */
    OPT_INT,
    OPT_REAL,
    OPT_BYTES,
    OPT_LIST
};

struct opt {
    enum opt_kind kind;
    char letter;         /* short form; 0: none */
    const char *name;    /* long form */
    const char *arg;     /* name of the value in --help */
    size_t offset;       /* offset in struct args */
    const char *value;   /* default, as typed on the command line; NULL: none */
    double lo, hi;       /* OPT_INT, OPT_REAL: inclusive bounds; OPT_BYTES: lo, but for 0 */
    const char *choices; /* OPT_TEXT: allowed words "a|b|c"; NULL: any text */
    const char *help;    /* a sentence without a full stop; the text of a heading */
    /* OPT_TEXT: returns word i of those that the command knows from a table elsewhere, NULL beyond
     * the last; for completion. NULL: none. */
    const char *(*word)(size_t i);
};

struct command {
    const char *name;
    const char *operands; /* arguments in the usage line: "MODEL_DIR" */
    const char *summary;  /* one line */
    const char *details;  /* more lines and an example */
    /* tables of options, NULL-terminated; each table ends with {0} */
    const struct opt *const *groups;
    int min_pos, max_pos;
    /* which operand may name a model as on the hub, from 1; -1: only --model; 0: nothing */
    int model;
    enum err (*run)(struct args *a);
};

/* Tables shared by several commands. One without a heading continues the table before it. */
extern const struct opt opt_report[];   /* --json, --quiet, --verbose */
extern const struct opt opt_recipe[];   /* --config, --set and their shortcuts */
extern const struct opt opt_data[];     /* --data, --text-field, --join, --bos */
extern const struct opt opt_progress[]; /* --log-json */
extern const struct opt opt_shard[];    /* --shard */
extern const struct opt opt_given[];    /* --weights-from */
/* --keep-state, --plan, --force: of a job that ends with an artifact */
extern const struct opt opt_finish[];

/* Parses argv[1..] of a command into a, which need not be initialized. A mistake ends the
 * process with two lines on stderr and status 2; --help ends it with status 0. */
void opt_parse(struct args *a, const struct command *cmd, int argc, char **argv);

/* Returns whether an option of a's command was given, be it with the value of its default. */
bool opt_is_given(const struct args *a, const struct opt *o);

/* Returns the index of word in "a|b|c", or -1. */
int opt_choice(const char *choices, const char *word);
/* Returns word number index of "a|b|c", fewer than 32 bytes. Valid until the thread's next
 * call. */
const char *opt_choice_name(const char *choices, int index);
/* Writes "a|b|c" as "a, b, c" to out. */
void opt_choices_text(char *out, size_t n, const char *choices);

/* ERR_USAGE if an argument is not UTF-8. JSON holds nothing else, so a command that would
 * write its arguments as JSON checks them before it begins. what names that output, as
 * "--json". */
enum err opt_need_utf8(const struct args *a, const char *what);

/* Replaces the operand, --model and --against that name a model as on the hub by the
 * directory in the local cache (hub_cache.h). Call opt_free_models() whatever the result. */
enum err opt_find_models(struct args *a);
void opt_free_models(struct args *a);

/* Returns the first of argv[1..] that is a long option which cmd does not have, as an index; 0:
 * none, or --help is before it. */
int opt_find_unknown(const struct command *cmd, int argc, char **argv);
/* Returns the long option of cmd that is closest to a misspelt one, without its hyphens; NULL:
 * none is close. */
const char *opt_nearest(const struct command *cmd, const char *name);
/* Returns whether cmd has the long option. */
bool opt_has(const struct command *cmd, const char *name);

/* Prints the words of "a|b|c", one a line. */
void opt_print_choices(const char *choices);
/* Print a command's options for shell completion (one per line), a case of the values of those
 * that have choices, or its section of the man page. */
void opt_print_words(const struct command *cmd);
void opt_print_value_words(const struct command *cmd);
void opt_print_man(const struct command *cmd);
/* Prints text with the escapes of a man page. */
void opt_print_troff(const char *text);

#endif
