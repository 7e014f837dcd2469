/* SPDX-License-Identifier: MIT */
#include "calib/model/shapes.h"
#include "data/json.h"
#include "kernels/base/clock.h"
#include "kernels/base/log.h"
#include "tools/bench/synth.h"
#include "tools/cli/progress.h"
#include "tools/cli/stop.h"
#include "tools/commands/commands.h"

#include <inttypes.h>
#include <stdio.h>

/* clang-format off */
static const struct opt options[] = {
    {OPT_HEADING, .help = "Checkpoint:"},
    {OPT_TEXT, .name = "shape", .arg = "MODEL", .offset = offsetof(struct args, shape),
     .choices = SHAPE_CHOICES, .help = "Shape of the model (default: none, required)"},
    {OPT_TEXT, 'o', "output", "OUT", offsetof(struct args, out),
     .help = "Directory for the checkpoint (default: none, required)"},
    {OPT_INT, .name = "layers", .arg = "N", .offset = offsetof(struct args, layers),
     .value = "0", .lo = 0, .hi = 1 << 20, .help = "Blocks; 0 = as many as the model has"},
    {OPT_INT, .name = "seed", .arg = "N", .offset = offsetof(struct args, seed),
     .value = "0", .lo = 0, .hi = 9e15, .help = "Seed of the weights"},
    {OPT_TEXT, .name = "tokenizer", .arg = "DIR", .offset = offsetof(struct args, tokenizer),
     .help = "Copy the tokenizer of this model (default: none)"},
    {OPT_INT, 'j', "threads", "N", offsetof(struct args, threads), "0", 0, 4096,
     .help = "Threads; 0 = one per core"},
    {0},
};
/* clang-format on */
static const struct opt *const groups[] = {options, opt_shard, opt_progress, opt_report,
                                           NULL};

static enum err read_settings(struct synth_settings *s, const struct args *a)
{
    FAIL_IF(!a->shape, ERR_USAGE, "no shape: give --shape");
    FAIL_IF(!a->out, ERR_USAGE, "no directory for the checkpoint: give -o OUT");
    *s = (struct synth_settings){.seed = (uint64_t)a->seed,
                                 .shard_bytes = a->shard_bytes,
                                 .threads = (int)a->threads,
                                 .tokenizer_dir = a->tokenizer};
    TRY(arch_of_shape(&s->arch, a->shape));
    s->arch.max_positions = arch_shape_positions(a->shape);
    FAIL_IF(a->layers > s->arch.n_layers, ERR_USAGE,
            "--layers %" PRId64 ": %s has %" PRId64 " blocks", a->layers, a->shape,
            s->arch.n_layers);
    if (a->layers)
        s->arch.n_layers = a->layers;
    return OK;
}

static enum err print_result(const struct args *a, const struct synth_settings *s,
                             double seconds)
{
    const uint64_t bytes = synth_bytes(&s->arch);
    if (!a->json) {
        log_info("%s: %.1f MB of weights in %.1f s", a->out, 1e-6 * (double)bytes, seconds);
        return OK;
    }
    json_t *o =
        json_pack("{s:s, s:s, s:I, s:I, s:I, s:f}", "checkpoint", a->out, "shape", a->shape,
                  "layers", (json_int_t)s->arch.n_layers, "seed", (json_int_t)s->seed,
                  "bytes", (json_int_t)bytes, "seconds", seconds);
    const enum err err = json_print(o, JSON_REAL_PRECISION(9));
    json_decref(o);
    return err;
}

static enum err run(struct args *a)
{
    struct synth_settings s;
    struct progress *p = NULL;
    TRY(read_settings(&s, a));
    TRY(progress_open(&p, a->quiet, a->log_json, NULL));
    stop_watch(STOP_AT_STEP);
    progress_phase(p, "synth");
    const double start = clock_s();
    enum err err = synth_write(a->out, &s, progress_write, p);
    progress_end(p);
    stop_watch(STOP_AT_ONCE);
    if (!err)
        err = print_result(a, &s, clock_s() - start);
    progress_close(&p);
    return err;
}

const struct command cmd_synth = {
    .name = "synth",
    .operands = "",
    .summary = "Make a checkpoint of random weights in a real model's shapes, for "
               "measurements",
    .details = "Writes config.json and sharded safetensors of F16. Weights are normal, "
               "and a few channels are several times as large as the rest. The same shape "
               "and seed give the same bytes. Its outputs are meaningless, but time and "
               "memory are those of a real model.\n\n"
               "  wkvq synth --shape llama-2-13b -o random-13b\n"
               "  wkvq synth --shape llama-2-7b --layers 4 --tokenizer SmolLM2-135M \\\n"
               "      -o random-7b-4\n",
    .groups = groups,
    .min_pos = 0,
    .max_pos = 0,
    .run = run,
};
