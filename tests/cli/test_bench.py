#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""`wkvq bench` at tiny sizes: it runs, and its report is consistent. test_bench.py WKVQ

Speed is not judged. Figures must be finite and positive, and agree with each other and with the
flops that are computed here from the shapes."""
import json
import math
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import harness
import tiny

T = 32
SHAPES = {
    "smollm2-135m": dict(L=30, D=576, F=1536, H=9, K=3, d=64),
    "llama-2-7b": dict(L=32, D=4096, F=11008, H=32, K=32, d=128),
}


class Bench(harness.Bench):
    def report(self, *args):
        report = json.loads(self.run("bench", *args, "--json").stdout, parse_constant=lambda c: 1 / 0)
        positive(report, "report")
        return report


def positive(value, where):
    """Every number below value is finite and not negative."""
    if isinstance(value, dict):
        for key, v in value.items():
            positive(v, f"{where}.{key}")
    elif isinstance(value, list):
        for i, v in enumerate(value):
            positive(v, f"{where}[{i}]")
    elif not isinstance(value, str):
        assert math.isfinite(value) and value >= 0, f"{where} = {value}"


def linear_flops(s, blocks):
    """Forward of blocks + 1, input gradients except that of the trained block's q, k and v, weight
    gradients of the trained block."""
    q, kv = s["H"] * s["d"], 2 * s["K"] * s["d"]
    qkv = (q + kv) * s["D"]
    block = qkv + q * s["D"] + 3 * s["D"] * s["F"]
    return 2 * T * ((blocks + 1) * block + blocks * block + (block - qkv) + block)


def attention_flops(s, blocks):
    """Seven products a head and block over the T(T+1)/2 pairs of the causal mask."""
    return 7 * (blocks + 1) * T * (T + 1) * s["H"] * s["d"]


def check_calibrate(b, blocks, compute):
    r = b.report("calibrate", "--seqlen", str(T), "--blocks", str(blocks), "--steps", "1",
                 "--compute", compute, "-j", "1")
    s = SHAPES["smollm2-135m"]
    assert r["seqlen"] == T and r["blocks"] == blocks, r
    assert r["compute"] == compute.upper(), r
    near = lambda a, b: abs(a - b) <= 1e-6 * b
    assert near(r["linear_flops"], linear_flops(s, blocks)), r
    assert near(r["attention_flops"], attention_flops(s, blocks)), r
    assert near(r["flops"], r["linear_flops"] + r["attention_flops"]), r
    # the products compute T x T pairs, of which the mask keeps about half: T T for T (T + 1)
    alone = r["linear_flops"] + r["attention_flops"] * T / (T + 1)
    assert near(r["gemm_only_flops"], alone), r
    assert r["step_s"] > 0 and r["gemm_only_s"] > 0, r
    assert near(r["gemm_only_s"], r["gemm_only_linear_s"] + r["gemm_only_attention_s"]), r
    assert near(r["gemm_only_share"], r["gemm_only_s"] / r["step_s"]), r
    for part in ("linear_s", "attention_forward_s", "attention_backward_s", "fakequant_s",
                 "elementwise_s", "loss_s", "optimizer_s"):
        assert r["parts"][part] > 0, (part, r)
    # all parts and the rest add up to the mean step; with one step, to that step
    assert near(sum(r["parts"].values()), r["step_s"]), r
    assert r["parts_step_s"] == r["step_s"], r


def check_refine(b, layers, compute):
    r = b.report("calibrate", "--refine", "--seqlen", str(T), "--layers", str(layers),
                 "--steps", "2", "--compute", compute, "-j", "1")
    s = SHAPES["smollm2-135m"]
    assert r["seqlen"] == T and r["layers"] == layers and r["batch"] == 2, r
    block = (s["H"] * s["d"] * 2 + 2 * s["K"] * s["d"] + 3 * s["F"]) * s["D"]
    # two products for the gradients beside the forward pass; the head of both models and its gradient
    passes = 1 if r["keeps_activations"] else 2
    linear = 2 * 2 * T * ((passes + 2) * layers * block + 3 * 49152 * s["D"])
    # two products forward and five backward
    attention = 2 * (2 * passes + 5) * layers * T * (T + 1) * s["H"] * s["d"]
    near = lambda a, b: abs(a - b) <= 1e-6 * b
    assert near(r["attention_flops"], attention), (r, attention)
    assert near(r["flops"], linear + attention), (r, linear + attention)
    for part in ("gemm_s", "attention_forward_s", "attention_backward_s", "quantization_s",
                 "elementwise_s", "loss_s", "optimizer_s"):
        assert r["parts"][part] > 0, (part, r)
    assert r["step_s"] > 0 and sum(r["parts"].values()) <= 2 * r["step_s"], r


# Entries of a device's table that `bench kernels` does not measure.
NOT_MEASURED = {
    "memory and copies, which `copy` stands for": {
        "close", "alloc", "free", "upload", "download", "zero", "sync", "memory", "put", "copy_in", "copy_out",
        "copy_wait", "copy_sync", "host_alloc", "host_free"},
    "the recording of steps": {"repeat", "forget"},
    "other ranks, which `mpirun wkvq bench calibrate` has": {"link", "unlink", "transfer"},
    "a number of bytes": {"attn_bytes"},
    "loss and all_finite, with their result left on the device": {"loss_to", "find_bad", "send", "sent"},
}


def operations():
    """The names that a report must have: the entries of struct dev_ops, with one for each kind of product."""
    header = (pathlib.Path(__file__).parents[2] / "kernels/dev_ops.h").read_text()
    table = re.search(r"struct dev_ops \{(.*?)\n\};", header, re.S)[1]
    entries = set(re.findall(r"^    \w[\w *]*\(\*(\w+)\)\(", table, re.M))
    left_out = set().union(*NOT_MEASURED.values())
    assert left_out < entries and "gemm" in entries, left_out - entries
    return entries - left_out - {"gemm"} | {"gemm_nt", "gemm_nn", "gemm_tn"}


def check_kernels(b, compute):
    r = b.report("kernels", "--seqlen", str(T), "--compute", compute)
    assert r["device"] and r["compute"] == compute.upper(), r
    assert r["copy_bytes_per_s"] > 0 and r["gemm_flops_per_s"] > 0, r
    names = [op["op"] for op in r["operations"]]
    assert sorted(names) == sorted(operations()), set(names) ^ operations()
    for op in r["operations"]:
        limit, work = (("gemm_flops_per_s", op["flops"]) if op["flops"] else
                       ("copy_bytes_per_s", op["bytes"]))
        assert op["seconds"] > 0 and work > 0, op
        share = work / r[limit] / op["seconds"]
        assert abs(op["share"] - share) <= 1e-6 * share, op
    by = {op["op"]: op for op in r["operations"]}
    s = SHAPES["smollm2-135m"]
    assert by["gemm_nt"]["flops"] == 4 * T * s["F"] * s["D"], by["gemm_nt"]
    assert by["attn_bwd"]["flops"] == 2.5 * by["attn"]["flops"], by["attn_bwd"]
    a, V, weights = {"f32": 4, "bf16": 2}[compute], 49152, 2 * s["F"] * s["D"]
    groups = 2 * s["F"] * -(-s["D"] // 128)
    floors = {"gather": 3 * a * T * s["D"], "offset_step": (2 + 12) * weights + 3 * groups, "code_step": 9 * weights,
              "dequantize": (0.5 + a) * weights + 3 * groups, "scale_steps": 8 * groups,
              "group_dot": (4 + a) * weights + 8 * groups, "rmsnorm_gain_bwd": (4 + a) * T * s["D"],
              "fake_quant_engine": 2 * a * T * s["K"] * s["d"], "fake_quant_kv_channel_bwd": 4 * a * T * s["K"] * s["d"],
              "distill": 12 * T * V}
    for name, floor in floors.items():
        assert by[name]["bytes"] == floor, (by[name], floor)


def check_decode(b, depth, compute):
    """A random W4 g128 + KV4 artifact; V: the rows of an F16 head."""
    s, V, group = SHAPES["smollm2-135m"], 49152, 128
    chunk = 2 if depth else 128
    r = b.report("decode", "--shape", "smollm2-135m", "--depth", str(depth), "--steps", "2",
                 "--compute", compute, *(["--chunk", str(chunk)] if depth else []))
    assert r["chunk"] == chunk, r
    assert r["compute"] in {"auto": ("F32",), "bf16": ("BF16", "F32")}[compute], r  # F32 without AVX512-VNNI
    near = lambda a, b: abs(a - b) <= 1e-6 * b
    C, Hd = s["K"] * s["d"], s["H"] * s["d"]
    linears = [(Hd, s["D"]), (C, s["D"]), (C, s["D"]), (s["D"], Hd), (s["F"], s["D"]),
               (s["F"], s["D"]), (s["D"], s["F"])]
    groups = lambda n: -(-n // group)
    row = lambda n: n // 2 + 2 * groups(n) + -(-groups(n) // 2)  # codes, scales, zeros
    assert r["subject"] == "smollm2-135m" and r["depth"] == depth, r
    assert r["weight_bytes"] == s["L"] * sum(out * row(n) for out, n in linears), r
    assert r["head_bytes"] == 2 * V * s["D"], r
    # 4 bits, and two F16 for each of a head's 64 channels: 4.5 an element
    assert r["cache_bytes"] == depth * s["L"] * 2 * C * 4.5 / 8, r
    total = r["weight_bytes"] + r["head_bytes"] + r["cache_bytes"]
    assert near(r["tokens_per_s"], 1 / r["token_s"]) and r["best_token_s"] <= r["token_s"], r
    assert r["read_bytes_per_s"] > 0, r
    assert near(r["share"], total / r["token_s"] / r["read_bytes_per_s"]), r
    assert r["prefill_flops_per_s"] > 0 and r["unpacked_flops_per_s"] > 0, r
    assert near(r["prefill_share"], r["prefill_flops_per_s"] / r["unpacked_flops_per_s"]), r
    assert (r["prefill_tokens_per_s"] > 0) == (depth > 0), r


def test_decode_experts(b):
    """A token reads the weights of its own experts, however many there are; the rest is that of a layer."""
    bytes_of = {}
    for experts in (2, 6):
        model, artifact = b.path / f"{experts}", b.path / f"{experts}.q"
        tiny.make_model(model, model_type="qwen3_moe", architectures=["Qwen3MoeForCausalLM"], num_experts=experts,
                        num_experts_per_tok=2, moe_intermediate_size=16)
        b.run("convert", model, "-o", artifact, "-q", *harness.words(["weights.group_size=16", "kv.group_size=8"]))
        bytes_of[experts] = b.report("decode", artifact, "--depth", "3", "--steps", "1")["weight_bytes"]
    assert bytes_of[2] == bytes_of[6], bytes_of


def test_refused(b):
    for args, text in ((["calibrate", "--blocks", "30"], "--blocks 30"),
                       (["calibrate", "--refine", "--layers", "31"], "--layers 31"),
                       (["calibrate", "--layers", "3"], "--layers needs --refine"),
                       (["kernels", "--refine"], "belong to `bench calibrate`"),
                       (["speed"], "kernels, calibrate or decode"),
                       (["decode", "/nonexistent"], "/nonexistent"),
                       (["kernels", "/nonexistent"], "/nonexistent"),
                       (["calibrate", "--shape", "llama"], "llama-2-7b"),
                       (["calibrate", "--shape", "llama-2-7b", "--blocks", "31",
                         "--seqlen", "1048576"], "--blocks")):
        done = b.run("bench", *args, want=2)
        assert not done.stdout and text in done.stderr, (args, done)


def test_text(b):
    done = b.run("bench", "calibrate", "--seqlen", T, "--blocks", "0", "--steps", "1")
    for word in ("GFLOP", "attention backward", "GEMM alone", "%"):
        assert word in done.stdout, done.stdout


def test_memory_of_threads(b):
    """The memory that is checked grows with the threads of the cpu device, as attention's does."""
    needs = []
    for threads in ("1", "96"):
        done = b.run("bench", "calibrate", "--seqlen", "256", "--blocks", "0", "--steps", "1", "-v", "-j", threads)
        needs.append(float(re.search(r"bench needs ([0-9.]+) GB", done.stderr)[1]))
    assert needs[0] + 0.03 < needs[1], needs


def test_calibrate(b):
    check_calibrate(b, 0, "f32")
    check_calibrate(b, 2, "bf16")


def test_refine(b):
    check_refine(b, 1, "f32")
    check_refine(b, 2, "bf16")


def test_kernels(b):
    check_kernels(b, "f32")
    check_kernels(b, "bf16")


def test_decode(b):
    check_decode(b, 0, "auto")
    check_decode(b, 5, "bf16")


if __name__ == "__main__":
    harness.main(globals(), Bench)
