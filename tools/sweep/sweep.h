/* SPDX-License-Identifier: MIT
 *
 * A sweep: many configurations of one model. Each is calibrated, converted, verified and
 * evaluated in a process of its own.
 *
 *   OUT/results.jsonl         one line per finished cell; replaced atomically
 *   OUT/results.csv           the same figures as a table
 *   OUT/sweep.json            about the latest run (sweep_record.h)
 *   OUT/report.html           the page of the results, by `wkvq sweep`
 *   OUT/cells/HASH.state      the calibration of an unfinished cell
 *   OUT/cells/HASH.json       a result that is not in results.jsonl yet
 *   OUT/cells/HASH.part       a result that lacks measures still (sweep_measures.h)
 *   OUT/cells/HASH.answers    answers of the measure in work (task_lines.h)
 *   OUT/cells/HASH            the artifact; kept with --keep
 *   OUT/cells/HASH.lock       held while a process works on the cell; empty
 *   OUT/cells/HASH.failed     the message of a cell's last run that failed
 *   OUT/shared                what many processes compute once (tools/sweep/sweep_share.h)
 *   OUT/lock                  held while a process runs all cells, and for a moment where one
 *                             that runs a single cell lists results; empty
 *
 * HASH is the hash of the cell's identity: its complete configuration, the checkpoint, both
 * texts and the evaluation. Further measures are not part of it, but have identities of their
 * own. A cell is done if it has a result with all measures asked. None of these functions is
 * thread-safe. */
#ifndef WKVQ_SWEEP_H
#define WKVQ_SWEEP_H

#include "kernels/base/file/lock.h"
#include "tools/eval/tasks/eval_tasks.h"
#include "tools/pipeline/job.h"
#include "tools/sweep/sweep_plan.h"

#include <stdio.h>

#define SWEEP_PARALLEL_MAX 64    /* cells at the same time */
#define SWEEP_HASH_MAX 20        /* bytes of a hash's text, with the NUL */
#define SWEEP_ANSWERS ".answers" /* of a cell's file of answers */

/* A tokenized text, shared by all cells that read it. */
struct sweep_text {
    struct recipe_files files; /* owned */
    int join, bos;
    char text_field[RECIPE_NAME_MAX];
    struct texts texts; /* names are those of files; each cell sets its shares */
};

/* Settings of a sweep besides its plan. Strings and lists are borrowed. */
struct sweep_settings {
    const char *model_dir, *out_dir;
    struct recipe_input recipe;   /* applied to every cell before the cell's own keys */
    const char *const *eval_data; /* [n_eval_data]; if empty, the plan's texts are used */
    int n_eval_data;
    int64_t eval_windows; /* 0: all windows; -1: the plan's number */
    int64_t eval_ctx;     /* tokens per window; 0: the plan's number */
    /* Cells at the same time; 0: 1. At most SWEEP_PARALLEL_MAX where sweep_execute is called. With
     * share, only the limit of sweep_submit; 0: none. */
    int64_t parallel;
    /* Measures besides the perplexity of the evaluation's text (sweep_measures.h) */
    const char *const *eval_texts; /* [n_eval_texts] NAME=FILE */
    int n_eval_texts;
    const char *eval_join; /* a word of CHOICES_JOIN for them; NULL: as the cell's text */
    const char *const *zeroshot; /* [n_zeroshot] files of multiple choice */
    int n_zeroshot;
    const char *const *labels; /* [n_labels] of those without labels, in their order */
    int n_labels;
    const char *const *longbench; /* [n_longbench] files of LongBench */
    int n_longbench;
    const char *prompts, *max_gen; /* LongBench's configuration; NULL: none */
    int64_t limit;                 /* questions of each file; 0: all */
    int64_t task_ctx;              /* tokens of a question or prompt; 0: eval_ctx */
    bool keep;            /* keep the artifacts, and the states of cells that have none */
    bool quiet;           /* print no progress lines */
    const char *log_json; /* file for progress; NULL: none */
    bool plan_only;       /* write nothing; sweep_execute is not called */
    /* Other processes may work on the sweep at the same time: its lock is not kept, and
     * sweep_execute is not called. */
    bool share;
    const char *command;       /* the user's command, for the record; NULL: none */
    const uint32_t *model_crc; /* hf_identity of model_dir if known, else NULL */
};

/* All questions as tokens, with one rule for BOS. */
struct sweep_questions {
    int bos;
    struct zeroshot_set *zeroshot; /* [settings.n_zeroshot] */
    int *labels;                   /* [settings.n_zeroshot] index of its labels; -1: none */
    struct longbench_set *longbench; /* [settings.n_longbench] */
};

/* A measure that is asked of a cell. */
struct sweep_asked {
    enum { SWEEP_TEXT, SWEEP_ZEROSHOT, SWEEP_LONGBENCH } kind;
    int index;        /* of the option's list in settings */
    int from;         /* of s->text, or of s->questions */
    json_t *identity; /* owned; with members task and name */
};

struct sweep_run {
    struct recipe recipe; /* as configured */
    /* [n_set] all overrides in order; the list is owned, its strings are borrowed */
    const char **set;
    const char **from; /* [n_set] where each was found, for messages; owned */
    int n_set;
    bool ends[2]; /* by enum mix_of: a layer ends the mix of an earlier one */
    /* The resolved run.compute. "auto" is the device's preferred type in calibration, and
     * f32 in evaluation, as in `wkvq eval`. */
    enum recipe_compute compute, eval_compute;
    int text, eval_text;
    json_t *identity;
    char hash[SWEEP_HASH_MAX];
    char spec[SWEEP_HASH_MAX]; /* that of the identity with run.compute as configured, which
                                * all machines share */
    struct sweep_asked *asked; /* [n_asked], owned */
    int n_asked;
    char *command; /* shell commands that reproduce the cell, owned */
    bool done;
    bool skip; /* sweep_execute does not run it */
};

/* What was not there before this process opened OUT. */
enum sweep_made { SWEEP_MADE_NOTHING, SWEEP_MADE_CELLS, SWEEP_MADE_OUT };

struct sweep {
    struct sweep_settings settings;
    const char *model_dir, *out_dir; /* borrowed from settings */
    struct sweep_plan plan;
    struct recipe_files eval_data; /* borrowed: --eval or the plan's */
    int64_t eval_windows, eval_ctx;
    struct arch arch;
    uint32_t model_crc;
    uint64_t model_bytes;
    struct tokenizer *tokenizer;
    struct sweep_text *text;
    int n_texts;
    struct sweep_questions *questions; /* [n_questions] */
    int n_questions;
    struct sweep_run *run; /* [plan.n_cells] */
    int64_t parallel, cores;
    int64_t gpu_cells; /* of the parallel ones, those that share a GPU */
    enum recipe_compute
        preferred[3]; /* by enum recipe_device; COMPUTE_AUTO: not determined yet */
    FILE *log;        /* settings.log_json, which the cells open too; NULL: none */
    json_t *results;  /* array of the objects in results.jsonl */
    struct lock lock;
    enum sweep_made made;
};

/* Opens the model and texts and computes the identity of each cell, so that mistakes are
 * found before work starts. *s is zeroed by the caller. Takes ownership of *plan in every
 * case. Call sweep_close() whatever the result. */
enum err sweep_open(struct sweep *s, const struct sweep_settings *settings,
                    struct sweep_plan *plan);
void sweep_close(struct sweep *s);

/* Returns the first cell with the identity of cell i if that is an earlier one; -1: there is none.
 * Such a twin has the state and the result of the first. */
int sweep_twin(const struct sweep *s, int i);
/* Returns whether cell i is to be run: it is neither done nor a twin. */
bool sweep_is_open(const struct sweep *s, int i);
/* Marks a cell and its twins as done. */
void sweep_set_done(struct sweep *s, int i);

/* Returns the threads of a cell of recipe r: its own, or this machine's, divided among the cells
 * that run at the same time. */
int64_t sweep_cell_threads(const struct sweep *s, const struct recipe *r);

/* Runs all cells without a result, up to s->parallel at the same time. A failed cell keeps
 * its state and does not stop the others. One that another process works on is left to it, and
 * looked at again at the end. The first failure is returned, with the number of failures;
 * ERR_USAGE: none failed, but others work on cells still. A cell whose verification fails has a
 * result, and is no failure here. */
enum err sweep_execute(struct sweep *s);
/* ERR_VERIFY: the verification of a cell that is not skipped has failed, in this run or earlier. */
enum err sweep_check_verified(const struct sweep *s);

/* Runs cell i in this process, unless it is done or a twin, and lists its result. For
 * settings.share: other processes may run other cells. ERR_USAGE: another process has worked on
 * this cell for two minutes. ERR_STOPPED: a signal interrupted it; the state is kept. ERR_VERIFY:
 * its verification has failed, and its result is listed. Takes ownership of the texts of s. */
enum err sweep_execute_cell(struct sweep *s, int i);

/* Runs one cell in a process that does nothing else. Takes ownership of the texts of s.
 * *out is the result, owned by the caller (json_decref). */
enum err sweep_cell_run(json_t **out, struct sweep *s, int i);

/* *out = the index in s->text of the text with these files and the rules of r. Reads it if
 * no earlier cell did. */
enum err sweep_find_text(int *out, struct sweep *s, const struct recipe_files *files,
                         const struct recipe *r);

/* ERR_USAGE: an evaluation's text, called `name`, has no whole window. */
enum err sweep_check_text(const struct sweep *s, int text, const char *name);

/* How a configuration is evaluated. */
enum sweep_way {
    SWEEP_PLAIN,     /* the checkpoint; only its activations may be rounded */
    SWEEP_SIMULATED, /* keys quantized per channel, which the packed runtime lacks */
    SWEEP_PACKED     /* converted, verified and evaluated as an artifact */
};
enum sweep_way sweep_way(const struct recipe *r);
/* Returns whether the recipe learns or collects anything on a text. */
bool sweep_needs_calibration(const struct recipe *r);
/* Returns whether a cell of this recipe is calibrated. */
bool sweep_calibrates(const struct recipe *r);
/* Writes the shell commands that reproduce the cell's figures. Release *out with
 * mem_free. */
enum err sweep_command(char **out, const struct sweep *s, const struct sweep_run *run);
/* Writes the one of measure i of those asked. */
enum err sweep_command_measure(char **out, const struct sweep *s,
                               const struct sweep_run *run, int i);
/* Puts a measure's command among those of a result, in place of `old`: that of the measure that
 * it replaces, or NULL. A result that has it, as one of a run with this measure, stays. */
enum err sweep_command_replace(json_t *row, const char *old, const char *one);

/* Prints a line per cell: whether it is done, begun, failed or to do, its hash and name. One that
 * is not done has its finished blocks and further measures, if any, and its failure's message. One
 * whose verification failed has a result, but counts as failed. */
enum err sweep_print_plan(const struct sweep *s);
/* Prints the number, hash and name of each cell that is to be run, separated by tabs. Numbers
 * count the cells of the file from 1. */
void sweep_print_cells(const struct sweep *s);
/* Prints a JSON list of cells: number, hash, name, status (done, failed, begun, to do), what
 * sweep_print_plan() prints of blocks and measures, {"done": 3, "total": 30}, and the message of a
 * failure; null where there is none. open_only: only those that are to be run. */
enum err sweep_print_json(const struct sweep *s, bool open_only);
/* Submits one array job of the cells that are to be run to Slurm, with sbatch. The array's tasks
 * run `wkvq sweep --cell N --expect HASH` with the arguments argv [argc] of this command, without
 * the program's name. options: more options of sbatch, separated by blanks; they win.
 * s->settings.parallel, if not 0, is the number of tasks at the same time. ERR_NOT_FOUND: no
 * sbatch. ERR_IO: sbatch failed, and printed why. Nothing to submit: as sweep_check_verified(). */
enum err sweep_submit(const struct sweep *s, const char *options, int argc, char **argv);
/* Writes a blank and a word, quoted so that a shell reads it unchanged. */
void sweep_put_word(FILE *f, const char *word);
/* Writes the options of a text that is calibrated on: its files, and how it was said on the command
 * line to read them. ERR_MEMORY. */
enum err sweep_put_text(FILE *f, const struct sweep *s, const struct recipe_files *files);
/* Writes the hash of a text, which names files. */
void sweep_hash(char out[SWEEP_HASH_MAX], const char *text);
/* Makes the path OUT/cells/HASH followed by suffix. Release *out with mem_free. */
enum err sweep_path(char **out, const struct sweep *s, const struct sweep_run *run,
                    const char *suffix);

#endif
