#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The training step of `wkvq bench calibrate` in plain PyTorch: bf16, torch.compile, scaled_dot_product_attention.

    python3 tools/peers/plain_step.py [--shape llama-2-7b] [--blocks 5] [--seqlen 2048] [--steps 5] [--device cuda]

A block with learnable clipping of its 4-bit weights (groups of 128) and learnable smoothing and shift of its 4-bit cache, the blocks
after it in full precision, mean absolute error against a target, AdamW. One simplification favours PyTorch: every query sees only
quantized keys and values, so that one call of fused attention suffices. With past-only quantization it would see its own in full
precision too. Prints one JSON object: the median of `steps` steps after a warm-up.
"""
import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F

SHAPES = {  # d_model, d_ff, heads, kv heads, head_dim
    "smollm2-135m": (576, 1536, 9, 3, 64),
    "llama-2-7b": (4096, 11008, 32, 32, 128),
    "llama-2-13b": (5120, 13824, 40, 40, 128),
}
GROUP, LEVELS = 128, 15


def straight_round(x):
    return x + (x.round() - x).detach()


def clipped(w, a, b):
    """Returns W^, quantized in groups of a row that sigmoid(a) and sigmoid(b) clip; gradients reach a and b."""
    shape = w.shape
    group = GROUP if shape[1] % GROUP == 0 else shape[1]
    g = w.float().view(shape[0], -1, group)
    hi = torch.sigmoid(a) * g.amax(-1).clamp(min=0)
    lo = torch.sigmoid(b) * g.amin(-1).clamp(max=0)
    h = ((hi - lo) / LEVELS).clamp(min=1e-8).unsqueeze(-1)
    z = straight_round(-lo.unsqueeze(-1) / h)
    q = (straight_round(g / h) + z).clamp(0, LEVELS)
    return ((q - z) * h).view(shape).to(w.dtype)


def cached(x, log_s, delta):
    """Returns x^ [heads, T, d] of a 4-bit cache with smoothing and shift per channel, quantized per token and head."""
    s = log_s.exp().unsqueeze(1)
    y = (x.float() - delta.unsqueeze(1)) / s
    lo, hi = y.amin(-1, keepdim=True), y.amax(-1, keepdim=True)
    h = ((hi - lo) / LEVELS).clamp(min=1e-8)
    q = straight_round((y - lo) / h).clamp(0, LEVELS)
    return ((q * h + lo) * s + delta.unsqueeze(1)).to(x.dtype)


def norm(x):
    return F.rms_norm(x.float(), x.shape[-1:], eps=1e-5).bfloat16()


def rotate(x, cos, sin):
    a, b = x.float().chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).bfloat16()


class Block(torch.nn.Module):
    def __init__(self, shape, learn):
        super().__init__()
        D, width, H, K, d = shape
        self.H, self.K, self.d, self.learn = H, K, d, learn
        for name, rows, cols in (("qkv", (H + 2 * K) * d, D), ("o", D, H * d), ("gate_up", 2 * width, D), ("down", D, width)):
            self.register_buffer(name, (torch.randn(rows, cols) * 0.02).bfloat16())
            if learn:
                groups = cols // GROUP if cols % GROUP == 0 else 1
                for p in "ab":
                    setattr(self, f"{name}_{p}", torch.nn.Parameter(torch.full((rows, groups), 4.0)))
        if learn:
            for name in ("k_s", "k_d", "v_s", "v_d"):
                setattr(self, name, torch.nn.Parameter(torch.zeros(K, d)))

    def linear(self, x, name):
        w = getattr(self, name)
        if self.learn:
            w = clipped(w, getattr(self, name + "_a"), getattr(self, name + "_b"))
        return F.linear(x, w)

    def forward(self, x, cos, sin):
        T = x.shape[0]
        q, k, v = self.linear(norm(x), "qkv").split((self.H * self.d, self.K * self.d, self.K * self.d), -1)
        q, k, v = (t.view(T, -1, self.d).transpose(0, 1) for t in (q, k, v))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if self.learn:
            k, v = cached(k, self.k_s, self.k_d), cached(v, self.v_s, self.v_d)
        if self.K != self.H:
            k, v = (t.repeat_interleave(self.H // self.K, 0) for t in (k, v))
        o = F.scaled_dot_product_attention(q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), is_causal=True)[0]
        x = x + self.linear(o.transpose(0, 1).reshape(T, -1), "o").float()
        gate, up = self.linear(norm(x), "gate_up").chunk(2, -1)
        return x + self.linear(F.silu(gate) * up, "down").float()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shape", choices=SHAPES, default="llama-2-7b")
    p.add_argument("--blocks", type=int, default=5)
    p.add_argument("--seqlen", type=int, default=2048)
    p.add_argument("--steps", type=int, default=5)
    p.add_argument("--device", default="cuda")
    p.add_argument("--eager", action="store_true", help="without torch.compile")
    a = p.parse_args()
    torch.manual_seed(1)
    D, d = SHAPES[a.shape][0], SHAPES[a.shape][4]
    with torch.device(a.device):
        blocks = [Block(SHAPES[a.shape], i == 0) for i in range(a.blocks + 1)]
        x, target = torch.randn(a.seqlen, D), torch.randn(a.seqlen, D)
        angle = torch.outer(torch.arange(a.seqlen).float(), 1e4 ** (-torch.arange(0, d, 2).float() / d))
        cos, sin = angle.cos(), angle.sin()
    optimizer = torch.optim.AdamW(blocks[0].parameters(), lr=1e-3, weight_decay=0, fused=a.device == "cuda")

    def loss_of(x):
        for block in blocks:
            x = block(x, cos, sin)
        return (x - target).abs().mean()

    if not a.eager:  # by block: two graphs that compile in seconds, where all blocks in one take minutes
        for block in blocks:
            block.compile(dynamic=False)
    wait = torch.cuda.synchronize if a.device == "cuda" else lambda: None

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(x)
        loss.backward()
        optimizer.step()
        return loss.item()

    for _ in range(3):
        loss = step()
    times = []
    for _ in range(a.steps):
        wait()
        begin = time.perf_counter()
        loss = step()
        wait()
        times.append(time.perf_counter() - begin)
    name = torch.cuda.get_device_name() if a.device == "cuda" else a.device
    print(json.dumps({"device": name, "torch": torch.__version__, "compiled": not a.eager, "shape": a.shape, "blocks": a.blocks,
                      "seqlen": a.seqlen, "steps": a.steps, "step_s": statistics.median_low(times), "loss": loss}))


main()
