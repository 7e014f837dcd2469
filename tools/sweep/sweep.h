/* SPDX-License-Identifier: MIT
 *
 * Many configurations of one model, each calibrated, converted, verified and evaluated by a
 * process of its own.
 *
 *   OUT/results.jsonl         a line a finished cell; rewritten beside and renamed
 *   OUT/results.csv           the same figures as a table
 *   OUT/cells/HASH.state      the calibration of a cell in work
 *   OUT/cells/HASH.json       a result that is not in results.jsonl yet
 *   OUT/cells/HASH            the artifact; stays with --keep
 *   OUT/lock                  held while a process works on the sweep; empty
 *
 * HASH stands for the cell's identity: its whole configuration, the checkpoint, both texts
 * and the evaluation. */
#ifndef WKVQ_SWEEP_H
#define WKVQ_SWEEP_H

#include "kernels/base/lock.h"
#include "tools/pipeline/job.h"
#include "tools/sweep/sweep_plan.h"

#define SWEEP_PARALLEL_MAX 64 /* cells at a time */

/* A text tokenized once, for every cell that reads it. */
struct sweep_text {
    struct recipe_files files; /* owned */
    int join, bos;
    char text_field[RECIPE_NAME_MAX];
    struct token_ids ids;
    uint32_t crc;
};

/* What a sweep is told beside its plan. Strings and lists are borrowed. */
struct sweep_settings {
    const char *model_dir, *out_dir;
    struct recipe_input recipe;   /* of every cell, before its own keys */
    const char *const *eval_data; /* [n_eval_data]; none: the plan's */
    int n_eval_data;
    int64_t eval_windows;      /* 0: all; -1: the plan's */
    int64_t eval_ctx;          /* 0: the plan's */
    int64_t parallel;          /* cells at a time, 1 to SWEEP_PARALLEL_MAX */
    bool keep;                 /* artifacts stay */
    bool quiet;                /* no lines of progress */
    const char *log_json;      /* file for progress; NULL: none */
    bool plan_only;            /* nothing is written; sweep_execute is not called */
    const uint32_t *model_crc; /* hf_identity of model_dir where it is known; NULL */
};

struct sweep_run {
    struct recipe recipe; /* as configured */
    const char **set;     /* [n_set] all overrides in order; the list is owned */
    int n_set;
    /* run.compute as it is carried out: auto is what the device prefers in calibration, and
     * f32 in evaluation, as `wkvq eval` has it. */
    enum recipe_compute compute, eval_compute;
    int text, eval_text;
    json_t *identity;
    char hash[20];
    char *command; /* what reproduces it */
    bool done;
    bool skip; /* sweep_execute leaves it out */
};

struct sweep {
    struct sweep_settings settings;
    const char *model_dir, *out_dir; /* the settings' */
    struct sweep_plan plan;
    struct recipe_files eval_data; /* borrowed: --eval or the plan's */
    int64_t eval_windows, eval_ctx;
    struct arch arch;
    uint32_t model_crc;
    uint64_t model_bytes;
    struct tokenizer *tokenizer;
    struct sweep_text *text;
    int n_texts;
    struct sweep_run *run; /* [plan.n_cells] */
    int64_t parallel, cores;
    enum recipe_compute
        preferred[3]; /* by enum recipe_device; COMPUTE_AUTO: not asked yet */
    json_t *results;  /* array of what results.jsonl holds */
    struct lock lock;
};

/* Model, texts, every cell's identity: all mistakes that can be found before work. Takes
 * over the plan, whatever the result. A zeroed sweep comes first; close it whatever the
 * result. */
enum err sweep_open(struct sweep *s, const struct sweep_settings *settings,
                    struct sweep_plan *plan);
void sweep_close(struct sweep *s);

/* Every cell that has no result yet, up to s->parallel at a time. A cell that fails leaves
 * its state and does not keep the others from running; the first failure is returned at the
 * end, with how many there were. */
enum err sweep_execute(struct sweep *s);

/* One cell, in a process that does nothing else: takes over the texts of s. *out: the
 * result. */
enum err sweep_cell_run(json_t **out, struct sweep *s, int i);

/* How a configuration is run. */
enum sweep_way {
    SWEEP_PLAIN,     /* the checkpoint; at most its activations are rounded */
    SWEEP_SIMULATED, /* what the packed runtime does not know: rounded activations,
                        keys by channel */
    SWEEP_PACKED     /* converted and verified */
};
enum sweep_way sweep_way(const struct recipe *r);
/* Has the recipe anything that is learned or collected on a text? */
bool sweep_needs_calibration(const struct recipe *r);
/* Does a cell of this recipe calibrate? */
bool sweep_calibrates(const struct recipe *r);
/* Commands that give the cell's figures, for a shell. */
enum err sweep_command(char **out, const struct sweep *s, const struct sweep_run *run);

/* OUT/cells/HASH and a suffix. */
enum err sweep_path(char **out, const struct sweep *s, const struct sweep_run *run,
                    const char *suffix);

#endif
