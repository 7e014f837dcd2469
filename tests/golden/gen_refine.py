#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Golden values of end-to-end refinement: losses between a quantized model of two layers and its
teacher in full precision, and every parameter's gradient by PyTorch autograd in f64. Written from
docs/method.md, independently of the C code; a layer is gen_block.py's. Needs torch and safetensors;
writes refine_*.safetensors beside itself for tests/calib/test_refine_golden.c; names as arguments choose cases.

Models are drawn until every rounding is far enough from a tie that float32 must round the same way.
"""
import itertools
import pathlib
import sys

import numpy as np
import torch
from safetensors.numpy import save_file

from gen_block import EPS, LINS, block, draw, quant_kv, rmsnorm, shape_of

LAYERS = 2
FIELDS = ["n_heads", "n_kv", "head_dim", "d_model", "d_ff", "vocab", "tokens", "windows", "qkv_bias", "o_bias",
          "mlp_bias", "qk_norm", "tied", "kv_bits", "kv_group", "pre_rope", "window", "sink", "scale_bits"]
# formats: bits and group size of all projections, and where layer 1 differs; 16 bits: not quantized.
CASES = {
    "gqa": dict(n_heads=4, n_kv=2, head_dim=8, d_model=20, d_ff=28, vocab=30, tokens=7, windows=2, qkv_bias=0,
                o_bias=0, mlp_bias=0, qk_norm=0, tied=0, kv_bits=4, kv_group=128, pre_rope=0, past_only=1,
                window=1, sink=0, scale_bits=11, formats=(4, 16), other={}, kl=0.75, ce=0.25),
    "qknorm": dict(n_heads=3, n_kv=1, head_dim=10, d_model=18, d_ff=27, vocab=26, tokens=8, windows=2, qkv_bias=1,
                   o_bias=1, mlp_bias=1, qk_norm=1, tied=1, kv_bits=4, kv_group=6, pre_rope=1, past_only=1,
                   window=2, sink=1, scale_bits=7, formats=(3, 8), other={"v": (8, 0), "down": (16, 0)},
                   kl=0.5, ce=1.25),
    "factors": dict(n_heads=4, n_kv=2, head_dim=8, d_model=20, d_ff=28, vocab=30, tokens=7, windows=2, qkv_bias=0,
                    o_bias=1, mlp_bias=0, qk_norm=0, tied=1, kv_bits=4, kv_group=128, pre_rope=0, past_only=1,
                    window=1, sink=0, scale_bits=11, formats=(4, 16), other={}, kl=0.75, ce=0.25,
                    embed=3.0, divisor=4.0, residual=0.5, logits=0.625),
    "layers": dict(n_heads=4, n_kv=2, head_dim=8, d_model=20, d_ff=28, vocab=30, tokens=9, windows=2, qkv_bias=0,
                   o_bias=0, mlp_bias=0, qk_norm=0, tied=0, kv_bits=4, kv_group=128, pre_rope=1, past_only=1,
                   window=1, sink=0, scale_bits=11, formats=(4, 16), other={}, kl=0.75, ce=0.25,
                   per_layer=[dict(reach=4), dict(rope=False)]),
    "behind": dict(n_heads=4, n_kv=2, head_dim=8, d_model=20, d_ff=28, vocab=30, tokens=7, windows=2, qkv_bias=1,
                   o_bias=1, mlp_bias=0, qk_norm=2, tied=0, kv_bits=4, kv_group=128, pre_rope=0, past_only=1,
                   window=1, sink=0, scale_bits=11, formats=(4, 16), other={}, kl=0.75, ce=0.25,
                   norms=("behind1", "behind2")),
    "around": dict(n_heads=4, n_kv=2, head_dim=8, d_model=20, d_ff=28, vocab=30, tokens=9, windows=2, qkv_bias=0,
                   o_bias=0, mlp_bias=0, qk_norm=1, tied=1, kv_bits=4, kv_group=128, pre_rope=1, past_only=1,
                   window=1, sink=0, scale_bits=11, formats=(4, 16), other={}, kl=0.75, ce=0.25,
                   norms=("norm1", "norm2", "behind1", "behind2"), plus=1.0, gelu=True,
                   per_layer=[dict(reach=4, theta=100.0), dict()]),
    "experts": dict(n_heads=4, n_kv=2, head_dim=8, d_model=20, d_ff=12, vocab=30, tokens=8, windows=2, qkv_bias=0,
                    o_bias=0, mlp_bias=0, qk_norm=1, tied=0, kv_bits=4, kv_group=128, pre_rope=0, past_only=1,
                    window=1, sink=0, scale_bits=11, formats=(4, 16), other={"down": (16, 0)}, kl=0.75, ce=0.25,
                    experts=5, active=2, norm_active=1),
    # More experts than choices: some get no token, and no gradient.
    "experts_plain": dict(n_heads=4, n_kv=2, head_dim=8, d_model=20, d_ff=8, vocab=30, tokens=7, windows=2, qkv_bias=0,
                          o_bias=0, mlp_bias=0, qk_norm=0, tied=1, kv_bits=4, kv_group=128, pre_rope=0, past_only=1,
                          window=1, sink=0, scale_bits=7, formats=(3, 16), other={}, kl=0.5, ce=1.0,
                          experts=30, active=2, norm_active=0),
}
NORMS = ("norm1", "norm2", "q_norm", "k_norm", "behind1", "behind2")
EXPERTS = ["experts", "active", "norm_active"]
FACTORS = ["embed", "divisor", "residual", "logits"]  # scores are divided
F32_ERROR = 2e-6  # of keys and values in F32, relative to the largest of a group: 17 ulp
CHOICE_MARGIN = 1e-4  # of the last chosen expert's probability over the next
CODE_MARGIN = 1e-4  # in steps: a group's range has 15 of them, and each 2e-6 of it is 3e-5


def half(x):
    return x.detach().half().to(x.dtype)


def round_scale(h, bits):
    """fp16, then its significand to so many bits, to nearest even."""
    mantissa, exponent = torch.frexp(half(h.clamp(2.0**-24, 65504)))
    return torch.ldexp(torch.round(torch.ldexp(mantissa, torch.tensor(bits))), exponent - bits)


def same_half(x, error):
    return bool(((x - error).half() == (x + error).half()).all())


class Cache:
    """quant_kv, and whether float32 rounds all of it the same way."""

    def __init__(self):
        self.safe = True

    def __call__(self, x, s, delta, bits, group):
        _, K, d = x.shape
        xt = ((x - delta.view(K, d)) / s.view(K, d)).detach()
        for g in xt.split(min(group, d), dim=2):
            mn, mx = g.amin(2, keepdim=True), g.amax(2, keepdim=True)
            error = F32_ERROR * g.abs().amax(2, keepdim=True)
            h = (mx - mn) / (2**bits - 1)
            u = (g - half(mn)) / half(h)
            far = ((u - torch.floor(u) - 0.5).abs() > CODE_MARGIN).all()
            self.safe = self.safe and bool(far) and same_half(mn, error) and same_half(h, 2 * error / (2**bits - 1))
        return quant_kv(x, s, delta, bits, group)


def draw_half(g, *shape, scale=1.0):
    return half(draw(g, *shape, scale=scale))


def draw_layer(g, c):
    """A layer's weights in full precision, exact in fp16; gains and biases exact in f32."""
    w = {l: draw_half(g, *shape_of(l, c), scale=shape_of(l, c)[1] ** -0.5) for l in LINS}
    sizes = {n: c["d_model"] for n in c.get("norms", ("norm1", "norm2"))}
    if c["qk_norm"]:
        q, k = (c["n_heads"], c["n_kv"]) if c["qk_norm"] == 2 else (1, 1)
        sizes.update(q_norm=q * c["head_dim"], k_norm=k * c["head_dim"])
    w.update({n: draw(g, size, scale=0.2, shift=1.0) for n, size in sizes.items()})
    biased = "qkv" * c["qkv_bias"] + "o" * c["o_bias"]
    for l in [*biased, *(["gate", "up", "down"] if c["mlp_bias"] else [])]:
        w["b" + l] = draw(g, shape_of(l, c)[0], scale=0.3)
    if "experts" in c:
        w["router"] = draw(g, c["experts"], c["d_model"], scale=1.5 * c["d_model"] ** -0.5)
    return w


def format_of(c, b, l):
    return c["other"].get(l, c["formats"]) if b else c["formats"]


def columns(per_group, group, cols):
    """A value per group [N, n] as one per column [N, cols]; the last group may be short."""
    return per_group.repeat_interleave(group or cols, dim=1)[:, :cols]


def quantize(g, w, bits, group, scale_bits):
    """Codes, scales and zeros. One code in ten is not the nearest, as after GPTQ."""
    top, parts = 2**bits - 1, w.split(group or w.shape[1], dim=1)
    hi = torch.stack([x.amax(1).clamp(min=0) for x in parts], 1)
    lo = torch.stack([x.amin(1).clamp(max=0) for x in parts], 1)
    h = round_scale((hi - lo) / top, scale_bits)
    z = torch.round(-lo / h).clamp(0, top)
    other = (torch.rand(w.shape, generator=g) < 0.1) * (2 * torch.randint(0, 2, w.shape, generator=g) - 1)
    near = torch.round(w / columns(h, group, w.shape[1])) + columns(z, group, w.shape[1])
    return (near + other).clamp(0, top), h, z


def draw_steps(g, h, bits):
    """u whose scales round the same way after an error of one ulp of float32."""
    while True:
        u = draw(g, *h.shape, scale=0.05)
        moved = h * u.exp()
        if torch.equal(round_scale(moved * (1 + 2e-7), bits), round_scale(moved * (1 - 2e-7), bits)):
            return u


def draw_params(g, c, source, norm, quantized):
    """The point where gradients are taken: refined already, so that nothing is 0 or the source's."""
    n, p = c["n_kv"] * c["head_dim"], {}
    for b, w in enumerate(source):
        for l in LINS:
            if l in quantized[b]:
                p[f"{b}.u.{l}"] = draw_steps(g, quantized[b][l][1], c["scale_bits"])
        for name in NORMS:
            if name in w:
                p[f"{b}.{name}"] = (w[name] + draw(g, *w[name].shape, scale=0.1)).float().double()
        for side in "kv":
            p[f"{b}.smooth_{side}"] = draw(g, n, scale=0.4)
            p[f"{b}.shift_{side}"] = draw(g, n, scale=0.4)
    p["norm"] = (norm + draw(g, *norm.shape, scale=0.1)).float().double()
    return {name: x.requires_grad_() for name, x in p.items()}


def student_layer(c, b, w, quantized, p):
    """Weights of layer b from its codes. The rounding of h is straight through in log h."""
    y = dict(w)
    for l, (codes, h0, z) in quantized.items():
        u = p[f"{b}.u.{l}"]
        h = round_scale(h0 * u.exp(), c["scale_bits"]) * torch.exp(u - u.detach())
        group, cols = format_of(c, b, l)[1], codes.shape[1]
        y[l] = (codes - columns(z, group, cols)) * columns(h, group, cols)
    y.update({n: p[f"{b}.{n}"] for n in NORMS if n in w})
    kv = {f"{s}_{to}": p[f"{b}.{of}_{s}"] for s in "kv" for of, to in (("smooth", "ls"), ("shift", "delta"))}
    return y, kv


def losses(student, teacher, ids):
    """Mean divergence of the student from the teacher, and mean cross entropy."""
    log_q = torch.log_softmax(student[:-1], dim=1)
    log_p = torch.log_softmax(teacher[:-1], dim=1)
    kl = (log_p.exp() * (log_p - log_q)).sum(1).mean()
    return torch.stack([kl, -log_q[torch.arange(len(ids) - 1), ids[1:]].mean()])


def case(c, seed):
    """Golden tensors, or None if float32 could round differently."""
    g = torch.Generator().manual_seed(seed)
    source = [draw_layer(g, c) for _ in range(LAYERS)]
    norm = draw(g, c["d_model"], scale=0.2, shift=1.0)
    embed = draw_half(g, c["vocab"], c["d_model"])
    head = embed if c["tied"] else draw_half(g, c["vocab"], c["d_model"], scale=c["d_model"] ** -0.5)
    ids = torch.randint(0, c["vocab"], (c["windows"], c["tokens"]), generator=g)
    quantized = [{l: quantize(g, w[l], *format_of(c, b, l), c["scale_bits"])
                  for l in LINS if format_of(c, b, l)[0] < 16} for b, w in enumerate(source)]
    p = draw_params(g, c, source, norm, quantized)
    layers = [student_layer(c, b, w, quantized[b], p) for b, w in enumerate(source)]

    cache, states, teachers, loss, largest = Cache(), [], [], [], []
    for window in ids:
        x = y = embed[window] * c.get("embed", 1.0)
        for (w, kv), full, own in zip(layers, source, c.get("per_layer", [{}] * LAYERS)):
            seen, teacher = {}, {}
            x, y = block(x, w, {**c, **own}, kv, seen, cache), block(y, full, {**c, **own}, seen=teacher)
            states.append(x)
            if min(s.get("margin", 1) for s in (seen, teacher)) < CHOICE_MARGIN:
                return None
        if not cache.safe:
            return None
        by = c.get("logits", 1.0)
        teachers.append(rmsnorm(y, norm) * by)
        logits = (rmsnorm(x, p["norm"]) * by) @ head.T, teachers[-1] @ head.T
        loss.append(losses(*logits, window))
        largest.append(torch.stack(logits).abs().max())
    loss = torch.stack(loss)
    (loss @ torch.tensor([c["kl"], c["ce"]]).double()).mean().backward()

    plus = c.get("plus", 0.0)  # gains are 1 + the stored weights
    save = {"norm": norm - plus, "states": torch.stack(states), "teacher": torch.stack(teachers), "loss": loss,
            "largest_logit": torch.stack(largest), "weights": torch.tensor([c["kl"], c["ce"]])}
    if "per_layer" in c:
        save["reach"] = torch.tensor([own.get("reach", 0) for own in c["per_layer"]])
        save["rope"] = torch.tensor([own.get("rope", True) for own in c["per_layer"]])
    if "embed" in c:
        save["factors"] = torch.tensor([c[f] for f in FACTORS])
    if "experts" in c:
        save["experts"] = torch.tensor([c[f] for f in EXPERTS])
    save.update({"p." + name: x for name, x in p.items()})
    save.update({"d." + name: x.grad for name, x in p.items()})
    save.update({f"{b}.{n}": x - plus if n in NORMS else x for b, w in enumerate(source) for n, x in w.items()
                 if n not in LINS})
    if plus:
        save["theta"] = torch.tensor([own.get("theta", 0.0) for own in c["per_layer"]])
    save = {name: x.detach().float().numpy() for name, x in save.items()}
    halves = {"embed": embed, **({} if c["tied"] else {"head": head})}
    halves.update({f"{b}.{l}": w[l] for b, w in enumerate(source) for l in LINS})
    for b, layer in enumerate(quantized):
        for l, (codes, h, z) in layer.items():
            halves[f"{b}.{l}.scales"] = h
            save[f"{b}.{l}.codes"], save[f"{b}.{l}.zeros"] = (x.byte().numpy() for x in (codes, z))
    save.update({name: x.half().numpy() for name, x in halves.items()})
    save["config"] = np.array([c[f] for f in FIELDS], dtype=np.int32)
    save["formats"] = np.array([[format_of(c, b, l) for l in LINS] for b in range(LAYERS)], dtype=np.int32)
    save["ids"] = ids.to(torch.int32).numpy()
    return {name: np.ascontiguousarray(x) for name, x in save.items()}


def main():
    assert EPS == 1e-5
    torch.set_num_threads(1)
    for name, c in CASES.items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        for seed in itertools.count():
            tensors = case(c, seed)
            if tensors:
                break
        path = pathlib.Path(__file__).with_name(f"refine_{name}.safetensors")
        save_file(tensors, path)
        print(path.name, "seed", seed, path.stat().st_size, "bytes, losses", *tensors["loss"].tolist())


if __name__ == "__main__":
    main()
