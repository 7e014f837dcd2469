#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""GPTQ in plain PyTorch and F32, as a second opinion on `weights.method: gptq`: MODEL -> OUT, a checkpoint of rounded weights.

    python3 -m venv v && v/bin/pip install torch transformers tokenizers safetensors auto-round
    v/bin/python tools/peers/gptq.py MODEL OUT --wkvq build/tools/wkvq --data wiki.train.raw

It draws the windows that `wkvq calibrate` would draw. The Hessians of a layer are those of its full-precision weights on the
stream that the quantized layers before it leave. A group's scale, in F32, follows from its least and greatest weight. Only the
tokens come from wkvq. Prints each layer's output error as a share of that of the nearest codes; `wkvq eval OUT` gives the loss.
"""
import torch
from transformers import AutoTokenizer

from autoround import open_model, options

BLOCK = 128  # columns whose updates of the later ones are added up


def scale_and_zero(w, bits):
    low, high = w.amin(1).clamp(max=0), w.amax(1).clamp(min=0)
    scale = (high - low) / (2**bits - 1)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return scale, torch.round(-low / scale)


def rounded(w, scale, zero, bits):
    return scale * (torch.clamp(torch.round(w / scale) + zero, 0, 2**bits - 1) - zero)


def nearest(w, bits, group):
    parts = [(g, scale_and_zero(g, bits)) for g in w.split(group, 1)]
    return torch.cat([rounded(g, s[:, None], z[:, None], bits) for g, (s, z) in parts], 1)


def factor(hessian, damp):
    """U, upper triangular, of the inverse U^T U."""
    h = hessian.double() + damp * hessian.diagonal().mean() * torch.eye(len(hessian)).double()
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True).float()


def gptq(w, hessian, bits, group, damp):
    w, hessian, out = w.clone(), hessian.clone(), torch.zeros_like(w)
    dead = hessian.diagonal() == 0
    hessian[dead, dead] = 1
    w[:, dead] = 0
    u, columns = factor(hessian, damp), w.shape[1]
    for first in range(0, columns, BLOCK):
        last = min(first + BLOCK, columns)
        errors = torch.zeros_like(w[:, first:last])
        for i in range(first, last):
            if i % group == 0:
                scale, zero = scale_and_zero(w[:, i:i + group], bits)
            out[:, i] = rounded(w[:, i], scale, zero, bits)
            errors[:, i - first] = (w[:, i] - out[:, i]) / u[i, i]
            w[:, i:last] -= errors[:, i - first, None] * u[i, i:last]
        w[:, last:] -= errors @ u[first:last, last:]
    return out


def output_error(error, hessian):
    return ((error @ hessian) * error).sum().item()


def quantize_layer(layer, run, hidden, a):
    """Returns the squared error of all outputs, and what it would be with the nearest codes."""
    linears = [m for m in layer.modules() if isinstance(m, torch.nn.Linear)]
    hessians = {m: torch.zeros(m.in_features, m.in_features) for m in linears}

    def add(module, inputs, output):
        x = inputs[0].reshape(-1, module.in_features)
        hessians[module] += 2 / len(hidden) * (x.T @ x)

    hooks = [m.register_forward_hook(add) for m in linears]
    for x in hidden:
        run(layer, x)
    for hook in hooks:
        hook.remove()
    sums = [0.0, 0.0]
    for m in linears:
        w = m.weight.data
        m.weight.data = gptq(w, hessians[m], a.bits, a.group, a.damp)
        sums[0] += output_error(w - m.weight.data, hessians[m])
        sums[1] += output_error(w - nearest(w, a.bits, a.group), hessians[m])
    return sums


def main():
    ap = options(__doc__.split("\n")[0], samples=16)
    ap.add_argument("--bits", type=int, default=4)
    ap.add_argument("--damp", type=float, default=0.01)
    a = ap.parse_args()

    if a.group % BLOCK and BLOCK % a.group:
        ap.error(f"--group {a.group}: want a multiple or a divisor of {BLOCK}")
    model, samples = open_model(a)
    positions = torch.arange(a.seqlen)[None]
    with torch.no_grad():
        hidden = [model.model.embed_tokens(s) for s in samples]
        rope = model.model.rotary_emb(hidden[0], positions)

        def run(layer, x):
            y = layer(x, position_embeddings=rope, position_ids=positions, attention_mask=None)
            return y[0] if isinstance(y, tuple) else y

        for i, layer in enumerate(model.model.layers):
            own, plain = quantize_layer(layer, run, hidden, a)
            hidden = [run(layer, x) for x in hidden]
            print(f"layer {i}: {own / plain:.3f} of the output error of the nearest codes", flush=True)
    model.save_pretrained(a.out)
    AutoTokenizer.from_pretrained(a.model).save_pretrained(a.out)


if __name__ == "__main__":
    main()
