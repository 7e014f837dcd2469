#!/usr/bin/env python3
"""Golden values of one calibration step: the fake-quantized block (clipped weights, smoothed and
shifted KV, past-only attention), a full-precision block after it, the reconstruction loss, and
every learnable parameter's gradient by PyTorch autograd in f64. Written from docs/method.md,
independently of the C code. Needs torch and safetensors; writes block_*.safetensors beside itself.
"""
import pathlib

import numpy as np
import torch
from safetensors.numpy import save_file

LINS = ["q", "k", "v", "o", "gate", "up", "down"]
FIELDS = ["n_heads", "n_kv", "head_dim", "d_model", "d_ff", "tokens", "qkv_bias", "o_bias", "qk_norm",
          "w_bits", "w_group", "kv_bits", "kv_group", "pre_rope", "past_only", "window", "sink", "mse"]
CASES = {
    "gqa": dict(n_heads=4, n_kv=2, head_dim=8, d_model=24, d_ff=40, tokens=9, qkv_bias=0, o_bias=0,
                qk_norm=0, w_bits=4, w_group=16, kv_bits=4, kv_group=4, pre_rope=0, past_only=1, window=1,
                sink=0, mse=0),
    "bias_prerope": dict(n_heads=2, n_kv=2, head_dim=8, d_model=16, d_ff=36, tokens=8, qkv_bias=1, o_bias=1,
                         qk_norm=0, w_bits=3, w_group=0, kv_bits=3, kv_group=128, pre_rope=1, past_only=1,
                         window=2, sink=1, mse=0),
    "qknorm_all": dict(n_heads=3, n_kv=1, head_dim=10, d_model=20, d_ff=28, tokens=7, qkv_bias=0, o_bias=0,
                       qk_norm=1, w_bits=4, w_group=8, kv_bits=4, kv_group=5, pre_rope=1, past_only=0, window=1,
                       sink=0, mse=1),
}
EPS = 1e-5


class StraightThrough(torch.autograd.Function):
    """Has exactly the value y, and the gradient of x."""

    @staticmethod
    def forward(ctx, x, y):
        return y.clone()

    @staticmethod
    def backward(ctx, g):
        return g, None


class Clamp(torch.autograd.Function):
    """clamp(x, 0, Q) whose gradient also passes at 0 and Q, as the method says; PyTorch's own differs
    there between versions."""

    @staticmethod
    def forward(ctx, x, Q):
        ctx.save_for_backward((x >= 0) & (x <= Q))
        return x.clamp(0, Q)

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0], None


def ste_round(x):
    return StraightThrough.apply(x, torch.round(x.detach()))


def fp16(x):
    return StraightThrough.apply(x, x.detach().to(torch.float16).to(x.dtype))


def clip_weight(w, a, b, bits, group):
    """Learnable weight clipping over groups of columns; group 0: the whole row."""
    Q = 2**bits - 1
    parts = []
    for n, wg in enumerate(w.split(group or w.shape[1], dim=1)):
        hi = torch.sigmoid(a[:, n : n + 1]) * wg.amax(1, keepdim=True).clamp(min=0)
        lo = torch.sigmoid(b[:, n : n + 1]) * wg.amin(1, keepdim=True).clamp(max=0)
        h = fp16(((hi - lo) / Q).clamp(2.0**-24, 65504))
        z = Clamp.apply(ste_round(-lo / h), Q)
        q = Clamp.apply(ste_round(wg / h) + z, Q)
        parts.append((q - z) * h)
    return torch.cat(parts, dim=1)


def quant_kv(x, s, delta, bits, group):
    """x [T,K,d]; s, delta [K*d]; dynamic per token and group of channels in a head."""
    Q = 2**bits - 1
    _, K, d = x.shape
    s, delta = s.view(K, d), delta.view(K, d)
    parts = []
    for xt in ((x - delta) / s).split(min(group, d), dim=2):
        mn, mx = xt.min(2, keepdim=True).values, xt.max(2, keepdim=True).values
        h, m = fp16((mx - mn) / Q), fp16(mn)
        q = Clamp.apply(ste_round((xt - m) / h), Q)
        parts.append(m + h * q)
    return s * torch.cat(parts, dim=2) + delta


def rmsnorm(x, g):
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + EPS) * g


def rope(x, c):
    if not c.get("rope", True):
        return x
    T, _, d = x.shape
    inv = c.get("theta", 10000.0) ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    angle = torch.arange(T, dtype=torch.float64)[:, None] * inv
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    x1, x2 = x[..., : d // 2], x[..., d // 2 :]
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], dim=-1)


def attention(q, k, v, kq, vq, c):
    T, H, d = q.shape
    rep = H // k.shape[1]
    k, v, kq, vq = (t.repeat_interleave(rep, dim=1).transpose(0, 1) for t in (k, v, kq, vq))
    q = q.transpose(0, 1)
    i, j = torch.arange(T)[:, None], torch.arange(T)[None, :]
    window = c["window"] if c["past_only"] else 0
    full = (j > i - window) | (j < c["sink"])
    S = torch.where(full, q @ k.transpose(1, 2), q @ kq.transpose(1, 2)) / c.get("divisor", d**0.5)
    unseen = (j > i) | (j <= i - c.get("reach", T))
    P = torch.softmax(S.masked_fill(unseen, -torch.inf), dim=-1)
    o = torch.where(full, P, 0.0) @ v + torch.where(full, 0.0, P) @ vq
    return o.transpose(0, 1).reshape(T, H * d)


def norm_if(x, w, name):
    return rmsnorm(x, w[name]) if name in w else x


def mlp(n, w, c):
    gate, up = (n @ w[l].T + w.get("b" + l, 0.0) for l in ("gate", "up"))
    act = torch.nn.functional.gelu(gate, approximate="tanh") if c.get("gelu") else torch.nn.functional.silu(gate)
    return (act * up) @ w["down"].T + w.get("bdown", 0.0)


def mixture(n, w, c, seen):
    """c["active"] of c["experts"] MLPs, whose weights lie one after the other."""
    p = torch.softmax(n @ w["router"].T, dim=1)
    ranked, chosen = p.sort(dim=1, descending=True)
    k = c["active"]
    seen["margin"] = (ranked[:, k - 1] / ranked[:, k] - 1).min().item()
    g = ranked[:, :k] / (ranked[:, :k].sum(1, keepdim=True) if c["norm_active"] else 1.0)
    parts = {l: w[l].chunk(c["experts"]) for l in ("gate", "up", "down")}
    rows = [sum(g[t, j] * mlp(n[t], {l: parts[l][chosen[t, j]] for l in parts}, c) for j in range(k))
            for t in range(len(n))]
    return torch.stack(rows)


def block(x, w, c, kv=None, seen=None, quant_kv=quant_kv):
    T, H, K, d = c["tokens"], c["n_heads"], c["n_kv"], c["head_dim"]
    n1 = norm_if(x, w, "norm1")
    q, k, v = (n1 @ w[l].T + w.get("b" + l, 0.0) for l in "qkv")
    if c["qk_norm"] == 2:  # of all heads of a token together
        q, k = rmsnorm(q, w["q_norm"]), rmsnorm(k, w["k_norm"])
    q, k, v = q.view(T, H, d), k.view(T, K, d), v.view(T, K, d)
    if c["qk_norm"] == 1:
        q, k = rmsnorm(q, w["q_norm"]), rmsnorm(k, w["k_norm"])
    kr, kq, vq = rope(k, c), None, None
    if kv:
        bits, group = c["kv_bits"], c["kv_group"]
        k_args = (kv["k_ls"].exp(), kv["k_delta"], bits, group)
        kq = rope(quant_kv(k, *k_args), c) if c["pre_rope"] else quant_kv(kr, *k_args)
        vq = quant_kv(v, kv["v_ls"].exp(), kv["v_delta"], bits, group)
        seen.update(kq=kq, vq=vq)
    o = attention(rope(q, c), kr, v, kr if kq is None else kq, v if vq is None else vq, c)
    r = c.get("residual", 1.0)
    h = x + r * norm_if(o @ w["o"].T + w.get("bo", 0.0), w, "behind1")
    n2 = norm_if(h, w, "norm2")
    y = mixture(n2, w, c, seen) if "experts" in c else mlp(n2, w, c)
    return h + r * norm_if(y, w, "behind2")


def shape_of(lin, c):
    q, kv, D, F = c["n_heads"] * c["head_dim"], c["n_kv"] * c["head_dim"], c["d_model"], c["d_ff"]
    E = c.get("experts", 1)
    return {"q": (q, D), "k": (kv, D), "v": (kv, D), "o": (D, q), "gate": (E * F, D), "up": (E * F, D),
            "down": (E * D, F)}[lin]


def draw(g, *shape, scale=1.0, shift=0.0):
    """f64 values that are exact in f32, as the C code reads them."""
    return (torch.randn(*shape, generator=g) * scale + shift).to(torch.float64)


def draw_block(g, c):
    w = {l: draw(g, *shape_of(l, c), scale=shape_of(l, c)[1] ** -0.5) for l in LINS}
    w["norm1"], w["norm2"] = (draw(g, c["d_model"], scale=0.2, shift=1.0) for _ in range(2))
    if c["qkv_bias"]:
        w.update({"b" + l: draw(g, shape_of(l, c)[0], scale=0.3) for l in "qkv"})
    if c["o_bias"]:
        w["bo"] = draw(g, c["d_model"], scale=0.3)
    if c["qk_norm"]:
        w["q_norm"], w["k_norm"] = (draw(g, c["head_dim"], scale=0.2, shift=1.0) for _ in range(2))
    return w


def case(c, seed):
    g = torch.Generator().manual_seed(seed)
    T, D, n = c["tokens"], c["d_model"], c["n_kv"] * c["head_dim"]
    blocks = [draw_block(g, c), draw_block(g, c)]
    x, target = draw(g, T, D), draw(g, T, D, scale=2.0)
    p = {}
    for l in LINS:
        out, cols = shape_of(l, c)
        groups = -(-cols // (c["w_group"] or cols))
        p["a." + l], p["b." + l] = (draw(g, out, groups, scale=0.7, shift=1.5) for _ in range(2))
    kv = {"k_ls": draw(g, n, scale=0.3), "k_delta": draw(g, n, scale=0.3),
          "v_ls": draw(g, n, scale=0.3), "v_delta": draw(g, n, scale=0.3)}
    learn = {**p, **kv}
    for t in learn.values():
        t.requires_grad_()

    seen = {}
    wq = {l: clip_weight(blocks[0][l], p["a." + l], p["b." + l], c["w_bits"], c["w_group"]) for l in LINS}
    out0 = block(x, {**blocks[0], **wq}, c, kv, seen)
    out1 = block(out0, blocks[1], c)
    loss = ((out1 - target) ** 2).mean() if c["mse"] else (out1 - target).abs().mean()
    loss.backward()

    save = {"x": x, "target": target, "out0": out0, "out1": out1, "loss": loss.view(1), **seen, **learn}
    save.update({"d." + name: t.grad for name, t in learn.items()})
    save.update({f"block{i}.{name}": t for i, w in enumerate(blocks) for name, t in w.items()})
    save = {name: np.ascontiguousarray(t.detach().to(torch.float32).numpy()) for name, t in save.items()}
    save["config"] = np.array([c[f] for f in FIELDS], dtype=np.int32)
    return save


if __name__ == "__main__":
    for n, (name, c) in enumerate(CASES.items()):
        save_file(case(c, 100 + n), pathlib.Path(__file__).parent / f"block_{name}.safetensors")
