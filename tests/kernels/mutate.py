#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Mistakes planted in kernels/cuda, which a test must notice. They are all compiled into one copy of the device, in which
EMU_MUTANT chooses one.

mutate.py ROOT OUT...: writes the files OUT, named mutant_FILE after those of kernels/cuda.
mutate.py --names: prints the mutants, one per line.
mutate.py --caught NAME CHECKOP CARD COPIES CUDNN STEPS: runs the mutant's test. `none` must pass all of them, one case of 7.

If the text that a mutant replaces is missing, the build fails.
"""
import os
import pathlib
import re
import subprocess
import sys

CARD, COPIES, CUDNN, STEPS = PROGRAMS = "card", "copies", "cudnn", "steps"  # test_card, ...; else operations of checkop

# name: (file, anchor, the text soon after it that is replaced, its replacement, test). A statement is left out instead.
MUTANTS = {
    "reduce-first-barrier": ("cuda.h", "T block_reduce(", "__syncthreads();", None, "rmsnorm"),
    "reduce-second-barrier": ("cuda.h", "part[threadIdx.x / WARP_SIZE] = v;", "__syncthreads();", None, "rmsnorm"),
    "reduce-one-more": ("cuda.h", "T r = part[0];", "i < BLOCK / WARP_SIZE", "i <= BLOCK / WARP_SIZE", "rmsnorm"),
    "view-alignment": ("cuda.h", "view view_of(", "ld % 4 == 0", "true", "add"),
    "quad-past-the-row": ("cuda.h", "void put4(", "n < 4 || !x.wide", "!x.wide", "add"),
    "attn-one-key": ("attn_tiles.h", "bool has_form(", "(unsigned)(i - j) >= (unsigned)a.reach",
                     "(unsigned)(i - j + 1) >= (unsigned)a.reach + 1u", "attn"),
    "attn-reach": ("attn_tiles.h", "bool has_form(", "(unsigned)(i - j) >= (unsigned)a.reach",
                   "(unsigned)(i - j) > (unsigned)a.reach", "attn"),
    "attn-tile-left-out": ("attn_tiles.h", "bool tile_has(", "last > i0 - a.window", "last > i1 - a.window", "attn"),
    "attn-read-past-the-end": ("attn_tiles.h", "void load_tile(", "row + r < a.T", "row + r <= a.T", "attn"),
    "attn-row-in-int": ("attn_tiles.h", "void load_tile(", "(int64_t)(row + r) * x.ld", "(int)((row + r) * (unsigned)x.ld)", "far"),
    "quad-row-in-int": ("cuda_elem.cu", "struct add_piece {", "r * b.ld + c", "(int)((unsigned)r * (unsigned)b.ld) + c", "far"),
    "kv-row-in-int": ("cuda_kv.cu", "float in(int64_t t, int64_t c) const", "t * x.ld + c", "(int)((unsigned)t * (unsigned)x.ld) + c", "far"),
    "attn-alignment": ("attn_tiles.h", "heads heads_of(", "x->ld % vec == 0", "true", "attn"),
    "ldmatrix-without-trans": ("mma.h", "PTX_LDMATRIX(", '"ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"',
                               '"ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"', "attn"),
    "ldmatrix-lane-address": ("mma.h", "PTX_LDMATRIX(", "threadIdx.x % 16", "threadIdx.x % 8", "attn"),
    "ldmatrix-register-order": ("mma.h", "PTX_LDMATRIX(", '"ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"',
                                '"ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%1, %0}, [%2];"', "attn"),
    "mma-register-order": ("mma.h", "void mma_bf16(", '''"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
            "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"''',
                           '''"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
            "{%4, %6, %5, %7}, {%8, %9}, {%0, %1, %2, %3};"''', "attn"),
    "mma-fragment": ("mma.h", "frag_a load_a(", "(g + 8) * ld + t", "(g + 8) * ld + t + 8", "attn"),
    "attn-tile-barrier": ("cuda_attn.cu", "attn_kernel(attn_args a)", "__syncthreads();", None, "attn"),
    "attn-warp-barrier": ("cuda_attn.cu", "store_operand<T>(sp", "__syncwarp();", None, "attn"),
    "attn-shuffle-mask": ("cuda_attn.cu", "float row_max(", "FULL_WARP", "0x0000ffffu", "attn"),
    "attn-shared-not-allowed": ("cuda_attn.cu", "void run_attn(",
                                '!went_well(d, cuda_allow_shared(attn_kernel<T, D>, bytes), "attn")', "false", "attn"),
    "attn-block-size": ("cuda_attn.cu", "CUDA_LAUNCH((attn_kernel<T, D>)", "ROWS * 2", "ROWS", "attn"),
    "attn-bwd-barrier": ("cuda_attn_bwd.cu", "key_grad_kernel(attn_args a", "__syncthreads();", None, "attn_bwd"),
    "attn-bwd-query-tile": ("cuda_attn_bwd.cu", "key_grad_kernel(attn_args a", "j0 / QUERIES * QUERIES",
                            "j0 / QUERIES * QUERIES + QUERIES", "attn_bwd"),
    "attn-bwd-grids-swapped": ("cuda_attn_bwd.cu", "cuda_allow_shared(key_grad_kernel", "q_grid", "k_grid", "attn_bwd"),
    "channel-last-maximum": ("cuda_channel.cu", "block_of(", "v > mx", "v >= mx", "fake_quant_kv_channel_bwd"),
    "copy-not-waited-for": ("cuda_copies.cu", "void cuda_copy_wait(",
                            'went_well(d, cudaStreamWaitEvent(g->stream, g->copied, 0), "wait for copies");', None, COPIES),
    "copy-before-compute": ("cuda_copies.cu", "void queue_copy(",
                            'went_well(d, cudaStreamWaitEvent(g->copies, g->computed, 0), "copy")', "true", COPIES),
    "scratch-freed-in-flight": ("cuda_dev.cu", "bool grow(",
                                '!went_well(d, cudaStreamSynchronize(g->stream), what)', "false", COPIES),
    "memory-freed-in-flight": ("cuda_dev.cu", "void cuda_free(", "cuda_wait(d);", None, COPIES),
    "report-not-waited-for": ("cuda_copies.cu", "void cuda_sent(", 'went_well(d, cudaEventSynchronize(gpu_of(d)->sent[slot]), "report");',
                              None, COPIES),
    "report-of-another-slot": ("cuda_copies.cu", "void cuda_send(", "g->sent[slot]", "g->sent[1 - slot]", COPIES),
    "bad-loss-not-noticed": ("cuda_train.cu", "void sum_kernel(", "bad && !isfinite(k * sum)", "false", COPIES),
    "bad-step-moves": ("cuda_train.cu", "void adamw_kernel(", "(a.unless && *a.unless)", "false", COPIES),
    "upload-not-waited-for": ("cuda_dev.cu", "void cuda_upload(", "cudaStreamSynchronize(st)", "cudaSuccess", COPIES),
    "graph-of-another-key": ("cuda_graph.cu", "repeated *find_step(", "s->step[i].key == key", "true", STEPS),
    "graph-of-old-memory": ("cuda_graph.cu", "enum err cuda_repeat(", "s->moved != g->moved", "false", STEPS),
    "graph-first-step-left-out": ("cuda_graph.cu", "enum err queue_first(", "work(ctx)", "OK", STEPS),
    "graph-recorded-but-not-started": ("cuda_graph.cu", "r->graph = record(d, work, ctx);", "start(d, r->graph)", "true", STEPS),
    "graph-dropped-in-flight": ("cuda_graph.cu", "void cuda_forget(", "cuda_wait(d);", None, STEPS),
    "graph-not-forgotten": ("cuda_graph.cu", "cudaGraphExecDestroy(s->step[i].graph);", "s->n = 0;", None, STEPS),
    "capture-failure-kept": ("cuda_graph.cu", "enum err queue_instead(", "d->failed = OK;", None, STEPS),
    "capture-error-kept": ("cuda_graph.cu", "enum err queue_instead(", "cudaGetLastError();", None, STEPS),
    "capture-tried-again": ("cuda_graph.cu", "void stop_graphs(", "gpu_of(d)->graphs->off = true;", None, STEPS),
    "capture-waits": ("cuda_dev.cu", "bool earlier_work_went_well(", "g->capturing", "false", STEPS),
    "rates-of-the-capture": ("cuda_train.cu", "void adamw_kernel(", "a.rates ? *a.rates : a.own", "a.own", STEPS),
    "put-one-word-less": ("cuda_copies.cu", "void put_kernel(", "threadIdx.x < n", "threadIdx.x + 1 < n", STEPS),
    "quad-one-more": ("cuda_elem.cu", "void each_piece(", "cols - c < N", "cols - c < N - 1", "add"),
    "quad-stride": ("cuda_elem.cu", "void each_piece(", "gridDim.y", "gridDim.y + 1", "add"),
    "rope-head": ("cuda_elem.cu", "struct rope_pairs {", "h * d + k", "2 * h * half + k", "rope"),
    "rope-pair": ("cuda_elem.cu", "struct rope_pairs {", "x2 * co + x1 * si", "x2 * co - x1 * si", "rope"),
    "code-not-looked-for": ("cuda_find.cu", "enum err check_code(", "lacks_code(e)", "false", CARD),
    "old-gpu-accepted": ("cuda_find.cu", "enum err find_gpu(", "p.major < 8", "p.major < 7", CARD),
    "kv-one-token": ("cuda_kv.cu", "void fake_quant_kv_bwd_kernel(", "t < (tile + 1) * TOKENS", "t < (tile + 1) * TOKENS - 1",
                     "fake_quant_kv_bwd"),
    "kv-tile-sum": ("cuda_kv.cu", "void kv_sum_kernel(", "i < tiles", "i < tiles - 1", "fake_quant_kv_bwd"),
    "gemm-leading-dimension": ("cuda_lib.cu", "void lib_gemm(", "(int)row_distance(b)", "(int)b->ld", "gemm"),
    "gemm-transpose": ("cuda_lib.cu", "void lib_gemm(", "kind == GEMM_TN", "kind == GEMM_NN", "gemm"),
    "gemm-beta": ("cuda_lib.cu", "void lib_gemm(", "accumulate ? 1.0f : 0.0f", "1.0f", "gemm"),
    "gemm-blamed": ("cuda_lib.cu", "void lib_gemm(", 'earlier_work_went_well(d, "gemm")', "true", CARD),
    "sum-order": ("cuda_lib.cu", "cublasStatus_t set_wishes(", "CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE",
                  "CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE", "gemm_add"),
    "sum-alignment": ("cuda_lib.cu", "cublasStatus_t set_wishes(", "(uint32_t)p->shape.aligned[i]", "256u", "gemm_add"),
    "sum-transpose": ("cuda_lib.cu", "cublasStatus_t describe_sum(", "p->shape.kind == GEMM_NT", "p->shape.kind == GEMM_NN", "gemm_add"),
    "sum-plan-of-another-shape": ("cuda_lib.cu", "sum_plan *plan_of_sum(", "!memcmp(&l->plans[i].shape, &shape, sizeof(shape))",
                                  "true", "gemm_add"),
    "parts-window": ("cuda_parts.cu", "int64_t first_recent(", "t - a.w + 1", "t - a.w", "attn_parts"),
    "parts-sink-kept-quantized": ("cuda_parts.cu", "void past_keys_kernel(", "t < sink", "t < 0", "attn_parts"),
    "parts-past-forgotten": ("cuda_parts.cu", "void recent_kernel(", "sum = 1;", None, "attn_parts"),
    "parts-lse-row": ("cuda_parts.cu", "void past_lse_kernel(", "a.w + i % a.past", "i % a.past", "attn_parts_bwd"),
    "parts-sink-gradient": ("cuda_parts.cu", "void recent_key_kernel(", "j < a.sink || j >= a.past", "j >= a.past", "attn_parts_bwd"),
    "cudnn-old-accepted": ("cuda_cudnn.cu", "bool start(", "v < OLDEST", "false", CUDNN),
    "plan-dropped-in-flight": ("cuda_cudnn.cu", "plan *free_plan(", "cuda_wait(d);", None, CUDNN),
    "plan-memory": ("cuda_cudnn.cu", "bool dnn_run(", "(size_t)p->workspace", "256", "attn_parts_bwd"),
    "plan-blamed": ("cuda_cudnn.cu", "bool dnn_run(", 'earlier_work_went_well(d, "attention")', "true", CUDNN),
    "plan-status-kept": ("cuda_plan.cu", "void plan_make(", "p->status = before;", None, CUDNN),
    "parts-not-aligned": ("cuda_parts.cu", "bool give(", "heads_of(x).wide", "true", CUDNN),
    "plan-order-of-sums": ("cuda_plan.cu", "bool keeps_order(", "notes[i] == NOTE_NONDETERMINISTIC", "false", "attn_parts"),
    "plan-mask": ("cuda_plan.cu", "wire mask(", "PW_GE", "PW_ADD", "attn_parts"),
    "norm-all-threads-write": ("cuda_norm.cu", "struct norm_row {", "first == 0", "true", "rmsnorm"),
    "norm-copy-of-dy": ("cuda_norm.cu", "put4(dx.x, dx.at(r) + c, n, out);", "put4(copy.x, copy.at(r) + c, n, out)",
                        "put4(copy.x, copy.at(r) + c, n, q)", "rmsnorm_bwd"),
    "hadamard-sign": ("cuda_norm.cu", "void hadamard_kernel(", "lane & half", "lane & (2 * half)", "hadamard"),
    "distill-barrier": ("cuda_refine.cu", "const float at = s[next] - max_s;", "__syncthreads();", None, "distill"),
    "code-step-nibble": ("cuda_refine.cu", "void code_step_kernel(", "code << 4 * k", "code << 3 * k", "code_step"),
    "group-dot-race": ("cuda_refine.cu", "void group_dot_kernel(", "threadIdx.x % WARP_SIZE == 0", "threadIdx.x % WARP_SIZE < 2",
                       "group_dot"),
    "finite-flag-not-cleared": ("cuda_train.cu", "bool cuda_all_finite(",
                                '!went_well(d, cudaMemsetAsync(found, 0, sizeof(int), st), "all_finite")', "false", "all_finite"),
    "sum-all-threads-write": ("cuda_train.cu", "void sum_kernel(", "threadIdx.x == 0", "true", "loss"),
    "weight-columns-left": ("cuda_weight.cu", "each_quad_of(", "k.end - c < 4", "k.end - c < 1", "fake_quant_weights"),
    "weight-grad-outside": ("cuda_weight.cu", "struct clip_weights_bwd", "kept != round", "kept < round", "fake_quant_weights_bwd"),
    "weight-lanes-of-a-group": ("cuda_weight.cu", "wgroup<L> own_group(", "threadIdx.x / L::LANES", "threadIdx.x / (L::LANES + 1)",
                                "fake_quant_weights"),
    "weight-past-the-last-group": ("cuda_weight.cu", "wgroup<L> own_group(", "exists && lane == 0", "lane == 0", "fake_quant_weights"),
    "weight-gamma-of-the-neighbour": ("cuda_weight.cu", "void clip_factors(", "odd ? other : own", "own", "fake_quant_weights"),
    "weight-quotient": ("cuda_weight.cu", "float quotient(", "fmaf(fmaf(-q, g.h, x), g.inverse, q)", "q", "fake_quant_weights"),
    "weight-quotient-overflow": ("cuda_weight.cu", "float quotient(", "fminf(fmaxf(w, -0x1p100f), 0x1p100f)", "w",
                                 "fake_quant_weights"),
    "weight-whole-quads": ("cuda_weight.cu", "bool whole_quads(", "p.G % 4 == 0", "true", "fake_quant_weights"),
    "weight-grad-quads": ("cuda_weight.cu", "float add_quads(", "j < half", "j < half - 1", "fake_quant_weights_bwd"),
    "weight-step-outside": ("cuda_weight.cu", "struct step_offsets", "clamped(round, k.grid) == round", "true", "offset_step"),
    "oct-alignment": ("cuda_elem.cu", "bool in_octs(", "x.ld % (x.bf16 ? 8 : 4) == 0", "true", "add"),
    "half-pair-order": ("cuda_elem.cu", "struct half_piece {", "k % 2 * 16", "(k + 1) % 2 * 16", "copy"),
    "half-alignment": ("cuda_elem.cu", "struct half_piece {", "x.ld % 8 == 0", "true", "copy"),
    "oct-order": ("cuda_elem.cu", "void put_half8(", "u.z = pair[2]", "u.z = pair[3]", "add"),
    "gate-up-alignment": ("cuda_elem.cu", "gate_rows(const struct tensor", "F % 4 == 0", "true", "gate_bwd"),
    "rope-octs-of-two-heads": ("cuda_elem.cu", "struct rope_pairs {", "half % 8 == 0", "true", "rope"),
    "rope-oct-pair": ("cuda_elem.cu", "struct rope_pairs {", "b * co.v[i] + a * s", "b * co.v[i] - a * s", "rope"),
}
HEADERS = sorted({m[0] for m in MUTANTS.values() if m[0].endswith(".h")})
PRELUDE = "/* written by mutate.py */\nextern int wkvq_mutant;\n"
CHOICE = """#include <stdlib.h>
int wkvq_mutant = getenv("EMU_MUTANT") ? atoi(getenv("EMU_MUTANT")) : -1;
"""


def planted(number, name, text):
    """Returns the text of a file with one more mutant."""
    file, anchor, old, new, _ = MUTANTS[name]
    begin = text.find(anchor)
    at = text.find(old, begin)
    if begin < 0 or at < 0 or at - begin > 3000:
        sys.exit(f"mutate.py: {name}: no '{old}' soon after '{anchor}' in {file}: adapt the mutant")
    chosen = f"wkvq_mutant == {number}"
    if new is None:
        both = f"if (!({chosen})) {{ {old} }}"
    else:
        both = f"({chosen} ? ({new}) : ({old}))"
    return text[:at] + both + text[at + len(old):]


def written(root, file):
    """Returns a file below kernels/cuda with all of its mutants; its headers are the mutants' too."""
    [path] = (root / "kernels/cuda").rglob(file)
    text = path.read_text()
    for number, name in reversed(list(enumerate(MUTANTS))):
        if MUTANTS[name][0] == file:
            text = planted(number, name, text)
    for header in HEADERS:
        text = text.replace(f'"kernels/cuda/{header}"', f'"mutant_{header}"')
    choice = CHOICE if file == "cuda_dev.cu" else ""
    return PRELUDE + choice + (re.sub(r"WKVQ_(\w+_H)\b", r"MUTANT_\1", text) if file.endswith(".h") else text)


def passes(number, command):
    env = {**os.environ, "EMU_MUTANT": str(number), "EMU_WATCH": "1"}
    if "attn_parts" in command[-1]:
        env |= {"EMU_MAJOR": "9", "EMU_CUDNN": "92600"}
    r = subprocess.run(command, capture_output=True, text=True, env=env, timeout=250)
    print(r.stdout[-1500:], r.stderr[-1500:], sep="\n")
    if r.returncode not in (0, 1) and r.returncode > 0 and command[0].endswith("checkop_mutants"):
        sys.exit(f"mutate.py: the test cannot run: exit {r.returncode}")
    return r.returncode == 0


def command_of(test, programs, every):
    checkop, *others = programs
    if test in PROGRAMS:
        return [others[PROGRAMS.index(test)]]
    return [checkop, "--device", "cuda-emu", "--first", "--every", every, "--op", test]


def main():
    if sys.argv[1] == "--names":
        print("\n".join(MUTANTS))
    elif sys.argv[1] == "--caught":
        name, *programs = sys.argv[2:]
        if name == "none":
            ops = ",".join(sorted({m[4] for m in MUTANTS.values()} - {*PROGRAMS}))
            sys.exit(not all(passes(-1, command_of(t, programs, "7")) for t in (*PROGRAMS, ops)))
        caught = not passes(list(MUTANTS).index(name), command_of(MUTANTS[name][4], programs, "1"))
        print("caught" if caught else "NOT CAUGHT")
        sys.exit(not caught)
    else:
        for out in map(pathlib.Path, sys.argv[2:]):
            file = re.sub(r"\.cc$", ".cu", out.name.removeprefix("mutant_"))
            out.write_text(written(pathlib.Path(sys.argv[1]), file))


main()
