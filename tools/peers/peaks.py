#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What a GPU and its libraries reach at the shapes of one training step: a copy, a large product, attention by each library with and
without a fixed order of sums, and the step's products. Medians, timed by events.

    python3 tools/peers/peaks.py [--shape llama-2-7b] [--seqlen 2048]

Prints one JSON object after each group, each with all figures so far, so that a run that is cut keeps them.
"""
import argparse
import json
import statistics

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

SHAPES = {"llama-2-7b": (4096, 11008, 32, 128), "llama-2-13b": (5120, 13824, 40, 128)}  # d_model, d_ff, heads, head_dim
LIBRARIES = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
WARM_UP, RUNS = 3, 20


def median_s(run):
    for _ in range(WARM_UP):
        run()
    seconds = []
    for _ in range(RUNS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(seconds)


def tflops(flops, run):
    return round(flops / median_s(run) / 1e12, 1)


def normal(*shape):
    return torch.randn(shape, device="cuda").bfloat16()


def limits(out):
    source = torch.empty(1 << 30, device="cuda", dtype=torch.uint8).random_()
    target = torch.empty_like(source)
    out["copy_gb_s"] = round(2 * source.numel() / median_s(lambda: target.copy_(source)) / 1e9)
    a, b = normal(8192, 8192), normal(8192, 8192)
    out["cube_8192_tflops"] = tflops(2 * 8192**3, lambda: a @ b)


def one_library(name, fixed, T, H, d, out):
    """Causal attention: 2 products forward, 5 backward. A fixed order must give the same bits each time."""
    q, k, v = (normal(1, H, T, d).requires_grad_() for _ in range(3))
    dout, pairs = normal(1, H, T, d), T * (T + 1) // 2 * H
    key = name + ("_fixed_order" if fixed else "")

    def forward():
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    with sdpa_kernel([LIBRARIES[name]]):
        o = forward()

        def backward():
            return torch.autograd.grad(o, (q, k, v), dout, retain_graph=True)

        out[f"{key}_forward_tflops"] = tflops(4 * d * pairs, forward)
        first = backward()
        out[f"{key}_same_bits"] = all(torch.equal(a, b) for _ in range(5) for a, b in zip(first, backward()))
        out[f"{key}_backward_tflops"] = tflops(10 * d * pairs, backward)


def attention(T, H, d, out):
    for name in LIBRARIES:
        for fixed in (False, True):
            torch.use_deterministic_algorithms(fixed, warn_only=True)
            try:
                one_library(name, fixed, T, H, d, out)
            except RuntimeError as e:  # a library that this GPU or build lacks
                out[f"{name}_error"] = str(e)[:120]
    torch.use_deterministic_algorithms(False)


def products(T, D, width, out):
    for name, (n, k) in {"qkv": (3 * D, D), "o": (D, D), "gate_up": (2 * width, D), "down": (D, width)}.items():
        x, w, dy = normal(T, k), normal(n, k), normal(T, n)
        flops = 2 * T * n * k
        out[f"{name}_nt_tflops"] = tflops(flops, lambda: x @ w.T)
        out[f"{name}_nn_tflops"] = tflops(flops, lambda: dy @ w)
        out[f"{name}_tn_tflops"] = tflops(flops, lambda: dy.T @ x)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shape", choices=SHAPES, default="llama-2-7b")
    p.add_argument("--seqlen", type=int, default=2048)
    a = p.parse_args()
    D, width, H, d = SHAPES[a.shape]
    out = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "cudnn": torch.backends.cudnn.version()}
    for group in (limits, lambda o: attention(a.seqlen, H, d, o), lambda o: products(a.seqlen, D, width, o)):
        group(out)
        print(json.dumps(out), flush=True)


main()
