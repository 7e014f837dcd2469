#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Write engine.safetensors: what the caches of other engines make of keys and values, for
tests/kernels/test_engine_golden.c.

fp8.x, fp8.y: F32 and its value in PyTorch's float8_e4m3fn, limited to +-448 before: every value of the type, the ties
between neighbours and the next floats around them, values beyond the range, and random ones."""
import pathlib

import torch
from safetensors.torch import save_file


def beside(x):
    """x, and the floats before and after it."""
    return torch.cat([torch.nextafter(x, torch.full_like(x, -torch.inf)), x, torch.nextafter(x, torch.full_like(x, torch.inf))])


def fp8():
    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    values = values[values.isfinite()].sort().values
    ties = (values[1:] + values[:-1]) / 2
    generator = torch.Generator().manual_seed(1)
    scales = torch.tensor([1e-3, 1e-1, 10.0, 300.0])
    drawn = (torch.randn(4, 256, generator=generator) * scales[:, None]).flatten()
    beyond = torch.tensor([448.0, 464.0, 465.0, 480.0, 1e4, 3e38])
    x = torch.cat([values, beside(ties), drawn, beyond, -beyond])
    x = x[:len(x) // 2 * 2]  # the test makes pairs of them
    return x, x.clamp(-448, 448).to(torch.float8_e4m3fn).float()


def main():
    named = dict(zip(("fp8.x", "fp8.y"), fp8(), strict=True))
    save_file({k: v.contiguous() for k, v in named.items()}, pathlib.Path(__file__).parent / "engine.safetensors")


main()
