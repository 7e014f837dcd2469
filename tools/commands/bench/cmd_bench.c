/* SPDX-License-Identifier: MIT */
#include "tools/commands/bench/cmd_bench.h"

#include "tools/bench/bench_data.h"
#include "tools/cli/choices.h"
#include "tools/commands/commands.h"

#include <string.h>

#define DEFAULT_SHAPE "smollm2-135m"

/* clang-format off */
static const struct opt options[] = {
    {OPT_HEADING, .help = "Benchmark:"},
    {OPT_TEXT, .name = "shape", .arg = "MODEL", .offset = offsetof(struct args, shape),
     .choices = SHAPE_CHOICES,
     .help = "Shape to measure at (default: " DEFAULT_SHAPE ", unless an artifact is given)"},
    {OPT_INT, .name = "seqlen", .arg = "N", .offset = offsetof(struct args, seqlen),
     .value = "2048", .lo = 2, .hi = 1 << 20, .help = "Tokens of a step"},
    {OPT_INT, .name = "blocks", .arg = "K", .offset = offsetof(struct args, blocks),
     .value = "5", .lo = 0, .hi = 64,
     .help = "Blocks after the trained one (crr.blocks)"},
    {OPT_FLAG, .name = "refine", .offset = offsetof(struct args, refine),
     .help = "calibrate: measure a step of end-to-end refinement instead"},
    {OPT_INT, .name = "layers", .arg = "N", .offset = offsetof(struct args, layers),
     .value = "0", .lo = 0, .hi = 1000,
     .help = "With --refine: layers of the model; 0 = all of the shape's"},
    {OPT_INT, .name = "steps", .arg = "N", .offset = offsetof(struct args, steps),
     .value = "3", .lo = 1, .hi = 100000,
     .help = "Steps or tokens to measure, after one for warm-up"},
    {OPT_TEXT, .name = "compute", .arg = "TYPE", .offset = offsetof(struct args, compute),
     .value = "auto", .choices = CHOICES_COMPUTE, .help = "Type of the matrix operands"},
    {OPT_TEXT, .name = "device", .arg = "NAME", .offset = offsetof(struct args, device),
     .value = "cpu", .choices = CHOICES_DEVICE, .help = "What computes"},
    {OPT_INT, 'j', "threads", "N", offsetof(struct args, threads), "-1", -1, 4096,
     .help = "Threads; -1 = one per core"},
    {OPT_INT, .name = "depth", .arg = "N", .offset = offsetof(struct args, depth),
     .value = "0", .lo = 0, .hi = 1 << 20,
     .help = "Tokens in the cache before the first decoded one"},
    {OPT_INT, .name = "chunk", .arg = "N", .offset = offsetof(struct args, chunk),
     .value = "128", .lo = 1, .hi = 1 << 20,
     .help = "decode: tokens of those that are processed at a time"},
    {OPT_INT, .name = "kv-bits", .arg = "BITS", .offset = offsetof(struct args, kv_bits),
     .value = "0", .lo = 0, .hi = 16,
     .help = "16 leaves the cache in full precision; 0 follows the artifact"},
    {0},
};
/* clang-format on */
static const struct opt *const groups[] = {options, opt_report, NULL};

static enum err run(struct args *a)
{
    const char *what = a->pos.item[0];
    FAIL_IF(a->pos.n > 1 && strcmp(what, "decode"), ERR_USAGE,
            "bench %s %s: only `bench decode` accepts an artifact", what, a->pos.item[1]);
    FAIL_IF(
        a->pos.n > 1 && a->shape, ERR_USAGE,
        "bench decode %s --shape %s: the artifact has a shape of its own; omit --shape, or "
        "the artifact to decode random weights",
        a->pos.item[1], a->shape);
    if (!a->shape)
        a->shape = DEFAULT_SHAPE;
    FAIL_IF((a->refine || a->layers) && strcmp(what, "calibrate"), ERR_USAGE,
            "bench %s: --refine and --layers belong to `bench calibrate`", what);
    FAIL_IF(a->layers && !a->refine, ERR_USAGE, "--layers needs --refine");
    if (!strcmp(what, "kernels"))
        return bench_kernels(a);
    if (!strcmp(what, "calibrate"))
        return a->refine ? bench_refine(a) : bench_calibrate(a);
    if (!strcmp(what, "decode"))
        return bench_decode(a);
    FAIL(ERR_USAGE, "bench '%s': want kernels, calibrate or decode", what);
}

const struct command cmd_bench = {
    .name = "bench",
    .operands = "kernels|calibrate|decode [ARTIFACT]",
    .summary = "Measure operations, a training step or decoding",
    .details =
        "kernels: measures every operation at the shape's sizes: time, and bytes or flops "
        "per second. It also prints the share of the speed that a plain copy and a large "
        "matrix product just reached on this machine. calibrate: measures one training "
        "step by parts, and its matrix products alone, in the same order and with the same "
        "types, library and threads. Attention's products are timed as T x T per head and "
        "half of the time is counted, as the causal mask needs one half. Weights and "
        "activations are random; times are medians. On a GPU the parts come from a "
        "separate step that waits after each operation. Under mpirun, each rank has a "
        "sample of the step, and what it computes, waits for and sends is printed. "
        "decode: measures the packed "
        "runtime token by token, and compares the bytes that it must read with the "
        "machine's bandwidth. Without ARTIFACT it uses random weights of the shape in W4 "
        "g128 and KV4. Then it measures a chunk's products with packed and with unpacked "
        "weights.\n\n"
        "  wkvq bench kernels\n"
        "  wkvq bench calibrate --shape llama-2-7b --blocks 0 --compute f32\n"
        "  mpirun -n 4 wkvq bench calibrate --refine\n"
        "  wkvq bench decode SmolLM2-135M-w4kv4 --depth 1800 --steps 50\n"
        "  wkvq bench decode --shape tinyllama-1.1b\n",
    .groups = groups,
    .min_pos = 1,
    .max_pos = 2,
    .model = 2,
    .run = run,
};
