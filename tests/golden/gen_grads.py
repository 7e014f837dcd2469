#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Write grads.safetensors: PyTorch's forward values and autograd gradients of the quantizers,
straight through round and fp16, for tests/kernels/test_golden.c.

The formulas are those of docs/method.md and nothing of this project's C is used. Values are
rounded in float32, the gradients are float64's at those values."""
import pathlib

import numpy as np
import torch
from safetensors.numpy import save_file

out = {}


def ste(x, value):
    """Has exactly this value, so that a later clamp sees integers, and the gradient of x."""
    return value.detach() + (x - x.detach())


def clamp(x, lo, hi):
    """clamp whose gradient also passes at lo and hi; releases of torch.clamp differ in that."""
    lo, hi = torch.as_tensor(lo, dtype=x.dtype), torch.as_tensor(hi, dtype=x.dtype)
    return torch.where(x < lo, lo, torch.where(x > hi, hi, x))


def f16(x):
    return x.float().half().to(x.dtype)


def put(name, **tensors):
    for key, t in tensors.items():
        a = t.detach().numpy() if isinstance(t, torch.Tensor) else np.asarray(t)
        if a.dtype == np.float64:
            a = a.astype(np.float32)
        out[f"{name}.{key}"] = np.ascontiguousarray(a)


def lwc_group(w, a, b, bits):
    """One group of one row, all float64; a, b carry gradients. Returns w^, h, z."""
    top = 2**bits - 1
    w32 = w.float()
    sig_a, sig_b = torch.sigmoid(a), torch.sigmoid(b)
    big, small = w32.max().clamp(min=0), w32.min().clamp(max=0)
    hi32, lo32 = sig_a.detach().float() * big, sig_b.detach().float() * small
    hi, lo = ste(sig_a * big.double(), hi32.double()), ste(sig_b * small.double(), lo32.double())
    raw32 = (hi32 - lo32) / np.float32(top)
    raw = ste((hi - lo) / top, raw32.double())
    h = clamp(raw, 2.0**-24, 65504.0)
    h = ste(h, f16(h.detach()))
    h32 = h.detach().float()
    ratio = ste(-lo / h, (-lo32 / h32).double())
    z = clamp(ste(ratio, torch.round(-lo32 / h32).double()), 0, top)
    u = w / h
    q = clamp(ste(u, torch.round(w32 / h32).double()) + z, 0, top)
    return (q - z) * h, h, z


def lwc(name, rows, cols, group, bits, a_range, kind="normal"):
    w = torch.randn(rows, cols, dtype=torch.float32)
    if kind == "positive":
        w = w.abs() + 0.1
    elif kind == "zero-row":
        w[0] = 0
    elif kind == "heavy":
        w = w**3
    elif kind == "tiny":
        w *= 1e-8
    w = w.double()
    width = group or cols
    n = -(-cols // width)
    lo, hi = a_range
    a = (lo + (hi - lo) * torch.rand(rows, n)).double().requires_grad_()
    b = (lo + (hi - lo) * torch.rand(rows, n)).double().requires_grad_()
    wq, h, z = [], [], []
    for r in range(rows):
        parts = [lwc_group(w[r, g * width:(g + 1) * width], a[r, g], b[r, g], bits)
                 for g in range(n)]
        wq.append(torch.cat([p[0] for p in parts]))
        h.append(torch.stack([p[1] for p in parts]))
        z.append(torch.stack([p[2] for p in parts]))
    wq, h, z = torch.stack(wq), torch.stack(h), torch.stack(z)
    dwq = torch.randn(rows, cols).double()
    (wq * dwq).sum().backward()
    put(name, args=np.array([bits, group], np.int32), w=w, a=a, b=b, dwq=dwq, wq=wq,
        scales=h.detach().numpy().astype(np.float16), zeros=z.detach().numpy().astype(np.uint8),
        da=a.grad, db=b.grad)


def kv_group(x, ls, delta, bits):
    """One group of one token; all three carry gradients."""
    top = 2**bits - 1
    s32 = torch.exp(ls).detach().float()
    xt32 = (x.detach().float() - delta.detach().float()) / s32
    # s = exp(ls) and x~ = (x - delta) / s are replaced by their float32 values, so that the
    # derivatives are taken at the values of the forward pass.
    growth = torch.exp(ls - ls.detach())
    s = s32.double() * growth
    xt = xt32.double() / growth + ((x - delta) - (x - delta).detach()) / s32.double()
    mx, mn = xt[int(np.argmax(xt32.numpy()))], xt[int(np.argmin(xt32.numpy()))]
    raw32 = (xt32.max() - xt32.min()) / np.float32(top)
    h = clamp(ste((mx - mn) / top, raw32.double()), 0, 65504.0)
    h = ste(h, f16(h.detach()))
    m = ste(mn, f16(torch.clamp(mn.detach(), -65504.0, 65504.0)))
    if h.item() == 0:
        return s * ste(xt, m.detach().expand_as(xt)) + delta
    m32, h32 = m.detach().float(), h.detach().float()
    v = (xt - m) / h
    q = ste(v, torch.clamp(torch.round((xt32 - m32) / h32), 0, top).double())
    return s * (m + h * q) + delta


def kvq(name, tokens, heads, d, group, bits, kind="normal"):
    x = torch.randn(tokens, heads, d)
    if kind == "offset":  # m's rounding is several steps: codes are clamped
        x = x * 0.05 + 30
    elif kind == "constant":
        x[1] = 0.75
    elif kind == "outlier":
        x[:, :, 3] *= 40
    x = x.double().requires_grad_()
    plain = kind == "plain"
    ls = (torch.zeros if plain else lambda *n: 0.7 * torch.randn(*n))(heads * d)
    delta = (torch.zeros if plain else torch.randn)(heads * d)
    ls, delta = ls.double().requires_grad_(), delta.double().requires_grad_()
    group = min(group or d, d)
    rows = []
    for t in range(tokens):
        parts = []
        for head in range(heads):
            for c in range(0, d, group):
                end = min(c + group, d)
                ch = slice(head * d + c, head * d + end)
                parts.append(kv_group(x[t, head, c:end], ls[ch], delta[ch], bits))
        rows.append(torch.cat(parts))
    xq = torch.stack(rows).reshape(tokens, heads, d)
    dxq = torch.randn(tokens, heads, d).double()
    (xq * dxq).sum().backward()
    put(name, args=np.array([bits, group, plain], np.int32), x=x, s=torch.exp(ls).float(),
        delta=delta, dxq=dxq, xq=xq, dx=x.grad, dls=ls.grad, ddelta=delta.grad)


def kvc(name, tokens, heads, d, block, bits, kind="normal"):
    """Keys by channel: blocks of tokens, the rest copied."""
    x = torch.randn(tokens, heads, d)
    if kind == "constant":
        x[:, :, 1] = 0.75
    elif kind == "outlier":
        x[3] *= 40
    x = x.double().requires_grad_()
    zero, parts = torch.zeros(block).double(), []
    for t in range(0, tokens - tokens % block, block):
        flat = x[t:t + block].reshape(block, heads * d)
        columns = [kv_group(flat[:, c], zero, zero, bits) for c in range(heads * d)]
        parts.append(torch.stack(columns, 1).reshape(block, heads, d))
    parts.append(x[tokens - tokens % block:])
    xq = torch.cat(parts)
    dxq = torch.randn(tokens, heads, d).double()
    (xq * dxq).sum().backward()
    put(name, args=np.array([bits, block], np.int32), x=x, dxq=dxq, xq=xq, dx=x.grad)


def mae(name, rows, cols, weight):
    y, t = torch.randn(rows, cols), torch.randn(rows, cols)
    y[0, :3] = t[0, :3]
    y = y.double().requires_grad_()
    loss = weight * (y - t.double()).abs().mean()
    loss.backward()
    put(name, y=y, t=t, weight=np.array([weight], np.float32), loss=loss.reshape(1), dy=y.grad)


def main():
    torch.manual_seed(20240219)
    torch.set_num_threads(1)
    start = (4.0, 4.0)
    lwc("lwc.start_w4", 4, 64, 16, 4, start)
    lwc("lwc.ragged_w3", 3, 50, 16, 3, (-1, 3))
    lwc("lwc.row_w2", 4, 40, 0, 2, (-1, 3))
    lwc("lwc.w8", 2, 96, 32, 8, (0, 5))
    lwc("lwc.tight_w4", 4, 64, 32, 4, (-4, 0))
    lwc("lwc.one_side_w4", 4, 32, 16, 4, (-2, 3), "positive")
    lwc("lwc.zero_row_w4", 2, 32, 16, 4, start, "zero-row")
    lwc("lwc.heavy_w3", 3, 64, 64, 3, (-1, 2), "heavy")
    lwc("lwc.clamped_scale_w4", 2, 16, 8, 4, (0, 3), "tiny")
    kvq("kvq.head_w4", 6, 2, 16, 16, 4)
    kvq("kvq.groups_w4", 5, 2, 16, 8, 4)
    kvq("kvq.ragged_w3", 4, 2, 20, 8, 3)
    kvq("kvq.w2", 5, 1, 16, 0, 2, "outlier")
    kvq("kvq.w8", 4, 2, 16, 16, 8)
    kvq("kvq.clamped_codes_w8", 4, 1, 16, 16, 8, "offset")
    kvq("kvq.constant_w4", 3, 2, 8, 8, 4, "constant")
    kvq("kvq.plain_w4", 4, 2, 16, 8, 4, "plain")
    mae("mae.first", 3, 17, 0.5)
    kvc("kvc.whole_w4", 16, 2, 8, 8, 4)
    kvc("kvc.rest_w2", 13, 1, 20, 5, 2, "outlier")
    kvc("kvc.constant_w8", 9, 2, 4, 4, 8, "constant")
    path = pathlib.Path(__file__).with_name("grads.safetensors")
    save_file(out, path)
    print(path, path.stat().st_size, "bytes,", len(out), "tensors")


if __name__ == "__main__":
    main()
