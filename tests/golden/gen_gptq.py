#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Write gptq.safetensors: codes, scales and zeros of random layers by GPTQ, in PyTorch and
float64, for tests/calib/test_gptq.c.

The algorithm as Frantar et al. (arXiv 2210.17323) derive it: columns in order, each one's
rounding error spread by the inverse Hessian of the remaining columns, which is downdated column by
column. Their Cholesky form, in which it is usually implemented, is used here only to
check that. Layers are drawn until every rounding is far enough from a tie that float32 must
round the same way."""
import pathlib

import torch
from safetensors.torch import save_file

MARGIN = 1e-4


def far_from_tie(u):
    return bool(((u - torch.floor(u) - 0.5).abs() > MARGIN).all())


def scale_zero(w, bits):
    """Returns fp16 scale and zero of each row of w, and whether both are far from a tie."""
    top = 2**bits - 1
    lo, hi = w.min(1).values.clamp(max=0), w.max(1).values.clamp(min=0)
    raw = ((hi - lo) / top).clamp(2.0**-24, 65504.0)
    h = raw.half().double()
    wobble = (raw * (1 + 1e-5)).half() == (raw * (1 - 1e-5)).half()
    z = torch.round(-lo / h).clamp(0, top)
    return h, z, bool(wobble.all()) and far_from_tie(-lo / h)


def gptq(w, hessian, bits, group, act_order, damp, cholesky):
    """Returns codes, scales, zeros, and whether float32 gives the same. w, hessian: float64."""
    w, hess = w.clone(), hessian.clone()
    rows, cols = w.shape
    group = group or cols
    groups = (cols + group - 1) // group
    scales, zeros = torch.zeros(rows, groups).double(), torch.zeros(rows, groups).double()
    codes = torch.zeros(rows, cols).double()
    safe = True
    dead = hess.diagonal() == 0
    hess[dead, dead] = 1
    w[:, dead] = 0
    order = torch.arange(cols)
    if act_order:
        for g in range(groups):
            scales[:, g], zeros[:, g], ok = scale_zero(w[:, g * group:(g + 1) * group], bits)
            safe = safe and ok
        order = torch.argsort(hess.diagonal(), descending=True, stable=True)
    w, hess = w[:, order], hess[order][:, order]
    hess = hess + damp * hess.diagonal().mean() * torch.eye(cols).double()
    inverse = torch.linalg.inv(hess)
    upper = torch.linalg.cholesky(inverse, upper=True)
    for i in range(cols):
        column = int(order[i])
        g = column // group
        if not act_order and i % group == 0:
            scales[:, g], zeros[:, g], ok = scale_zero(w[:, i:i + group], bits)
            safe = safe and ok
        h, z = scales[:, g], zeros[:, g]
        u = w[:, i] / h
        safe = safe and far_from_tie(u)
        q = (torch.round(u) + z).clamp(0, 2**bits - 1)
        codes[:, column] = q
        error = w[:, i] - (q - z) * h
        if cholesky:
            w[:, i:] -= torch.outer(error / upper[i, i], upper[i, i:])
        else:
            w[:, i:] -= torch.outer(error / inverse[i, i], inverse[i, i:])
            inverse = inverse - torch.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    return codes.to(torch.uint8), scales.half(), zeros.to(torch.uint8), safe


def layer(seed, rows, cols, dead):
    """Weights, and a Hessian of correlated inputs of very different sizes."""
    rng = torch.Generator().manual_seed(seed)
    n = 3 * cols
    x = torch.randn(n, cols, generator=rng).double() @ torch.randn(
        cols, cols, generator=rng).double() / cols**0.5
    x = x * torch.exp(torch.randn(cols, generator=rng).double())
    x[:, dead] = 0
    w = 0.05 * torch.randn(rows, cols, generator=rng)
    return w, (2 / n * x.T @ x).float()


CASES = {  # bits, group, rows, cols, dead columns
    "groups": (4, 16, 20, 64, []),
    "ragged": (3, 24, 16, 64, []),
    "row": (4, 0, 16, 64, []),
    "wide": (4, 140, 8, 150, []),
    "steps": (2, 32, 8, 150, []),
    "dead": (4, 16, 16, 64, [3, 40]),
}


def main():
    out = {}
    for name, (bits, group, rows, cols, dead) in CASES.items():
        for act_order in (False, True):
            seed = 0
            while True:
                w, hessian = layer(seed, rows, cols, dead)
                args = (w.double(), hessian.double(), bits, group, act_order, 0.01)
                codes, scales, zeros, safe = gptq(*args, cholesky=False)
                if safe:
                    break
                seed += 1
            assert torch.equal(codes, gptq(*args, cholesky=True)[0])
            nearest = gptq(w.double(), torch.eye(cols).double(), bits, group, act_order, 0.01,
                           False)[0]
            print(name, act_order, "seed", seed, "codes other than nearest:",
                  int((nearest != codes).sum()), "of", codes.numel())
            p = f"{name}_{'order' if act_order else 'plain'}"
            out |= {f"{p}.w": w, f"{p}.hessian": hessian, f"{p}.codes": codes,
                    f"{p}.scales": scales, f"{p}.zeros": zeros,
                    f"{p}.spec": torch.tensor([bits, group, int(act_order)])}
    save_file({k: v.contiguous() for k, v in out.items()},
              pathlib.Path(__file__).parent / "gptq.safetensors")


main()
