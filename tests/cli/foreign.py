# SPDX-License-Identifier: MIT
"""Tiny checkpoints with weights as other tools pack them, for the tests of the command line. The packers are
written from the formats' descriptions in docs/export.md, in the standard library.

Codes, zero points and scales are random: nothing is quantized here, so a reader must return exactly these. Same
arguments, same bytes."""
import json
import pathlib
import random
import struct

import tiny

WIDE = {"hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 3, "num_key_value_heads": 1,
        "head_dim": 32, "num_hidden_layers": 2}
LINEARS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
           "mlp.down_proj"]
FUSED = ["self_attn.qkv_proj", "mlp.gate_up_proj"]  # of phi3
PHI3 = {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"]}
# The families with experts: other values of config.json, and an expert's modules for gate, up and down.
EXPERTS = {
    "qwen3_moe": ({"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 3,
                   "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True},
                  "mlp.experts", ["gate_proj", "up_proj", "down_proj"]),
    "mixtral": ({"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 3,
                 "num_experts_per_tok": 2, "intermediate_size": 64}, "block_sparse_moe.experts", ["w1", "w3", "w2"]),
}


class Linear:
    """q [out][in], z and h [out][groups], of one projection, as the tool stores them."""

    def __init__(self, rng, rows, cols, bits, group, symmetric, scale, negative, lowest):
        self.rows, self.cols, self.bits, self.group = rows, cols, bits, group or cols
        self.groups = -(-cols // self.group)
        top = (1 << bits) - 1
        self.q = [rng.choices(range(top + 1), k=cols) for _ in range(rows)]
        self.z = [[1 << bits - 1 if symmetric else rng.randint(lowest, top) for _ in range(self.groups)] for _ in range(rows)]
        size = 0.4 / (1 << bits)
        self.h = [[scale(size * rng.uniform(0.5, 1.5)) * (-1 if negative and rng.random() < 0.5 else 1)
                   for _ in range(self.groups)] for _ in range(rows)]

    def expected(self, order=None):
        """(q, z, h) as an artifact has them: h > 0 in fp16, groups in the order of columns."""
        q, z, h = [row[:] for row in self.q], [], []
        for r in range(self.rows):
            order_of = order or list(range(self.groups))
            zero, scale = [self.z[r][g] for g in order_of], [self.h[r][g] for g in order_of]
            for g in range(self.groups):
                if scale[g] < 0:
                    top = (1 << self.bits) - 1
                    zero[g] = top - zero[g]
                    for c in range(g * self.group, min((g + 1) * self.group, self.cols)):
                        q[r][c] = top - q[r][c]
            z.append(zero)
            h.append([f16(abs(x)) for x in scale])
        return q, z, h


def f16(x):
    return struct.unpack("<e", struct.pack("<e", x))[0]


def f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def bf16(x):
    """Truncated: any value of bf16 near x will do."""
    return struct.unpack("<f", b"\0\0" + struct.pack("<f", x)[2:])[0]


def floats(values, dtype):
    if dtype == "BF16":
        return b"".join(struct.pack("<f", x)[2:] for x in values)
    return struct.pack(f"<{len(values)}{'e' if dtype == 'F16' else 'f'}", *values)


def flat(rows):
    return [x for row in rows for x in row]


def transposed(rows):
    return [list(column) for column in zip(*rows)]


def packed(values, bits):
    """Words of a list of codes, lowest bits first."""
    per = 32 // bits
    values = values + [0] * (-len(values) % per)
    return [sum(v << bits * i for i, v in enumerate(values[at:at + per])) for at in range(0, len(values), per)]


def words(rows):
    """The tensor's shape and bytes."""
    return (len(rows), len(rows[0])), struct.pack(f"<{len(rows) * len(rows[0])}I", *flat(rows))


# --- one projection ---

def compressed(name, x, dtype, symmetric, signed_zeros=False, g_idx=None, **unused):
    """compressed-tensors, pack-quantized. signed_zeros: unpacked zero points, of early versions."""
    yield name + ".weight_packed", "I32", *words([packed(row, x.bits) for row in x.q])
    yield name + ".weight_scale", dtype, (x.rows, x.groups), floats(flat(x.h), dtype)
    if signed_zeros:
        zeros = [z - (1 << x.bits - 1) for z in flat(x.z)]
        yield name + ".weight_zero_point", "I8", (x.rows, x.groups), struct.pack(f"<{len(zeros)}b", *zeros)
    elif not symmetric:
        columns = [packed(column, x.bits) for column in transposed(x.z)]
        yield name + ".weight_zero_point", "I32", *words(transposed(columns))
    yield name + ".weight_shape", "I64", (2,), struct.pack("<2q", x.rows, x.cols)
    if g_idx:
        yield name + ".weight_g_idx", "I32", (x.cols,), struct.pack(f"<{x.cols}i", *g_idx)


def gptq(name, x, dtype, symmetric, version=2, words_minus=False, no_g_idx=False, g_idx=None, **unused):
    """GPTQ. version 1 stores z - 1: of each zero point, or words_minus: of the whole word."""
    per = 32 // x.bits
    yield name + ".qweight", "I32", *words(transposed([packed(row, x.bits) for row in x.q]))
    less = 1 if version == 1 and not words_minus else 0
    zeros = [packed([z - less for z in column], x.bits) for column in transposed(x.z)]
    if version == 1 and words_minus:
        zeros = [[(w - sum(1 << x.bits * i for i in range(per))) % (1 << 32) for w in row] for row in zeros]
    yield name + ".qzeros", "I32", *words(zeros)
    yield name + ".scales", dtype, (x.groups, x.rows), floats(flat(transposed(x.h)), dtype)
    if not no_g_idx:
        groups = g_idx or [c // x.group for c in range(x.cols)]
        yield name + ".g_idx", "I32", (x.cols,), struct.pack(f"<{x.cols}i", *groups)


def gptq_config(formats, ignore, symmetric, version=2, words_minus=False, auto_round=None, **unused):
    bits, group = next(iter(formats))
    config = {"bits": bits, "group_size": group or -1, "sym": symmetric, "desc_act": False}
    if auto_round:
        return {"quant_method": "auto-round", "packing_format": auto_round, "data_type": "int", **config}
    if version == 2:
        config["checkpoint_format"] = "gptq_v2"
    elif words_minus:
        config.update(checkpoint_format="gptq", meta={"quantizer": ["gptqmodel:2.2.0"]})
    return {"quant_method": "gptq", "lm_head": False, "damp_percent": 0.01, **config}


def awq(name, x, dtype, symmetric, **unused):
    """AWQ gemm: 8 rows in a word, interleaved."""
    def interleaved(column):
        return [sum(column[at + row] << 4 * i for i, row in enumerate((0, 2, 4, 6, 1, 3, 5, 7)))
                for at in range(0, len(column), 8)]

    yield name + ".qweight", "I32", *words([interleaved(column) for column in transposed(x.q)])
    yield name + ".qzeros", "I32", *words([interleaved(column) for column in transposed(x.z)])
    yield name + ".scales", dtype, (x.groups, x.rows), floats(flat(transposed(x.h)), dtype)


def awq_config(formats, ignore, symmetric, auto_round=None, **unused):
    bits, group = next(iter(formats))
    if auto_round:
        return {"quant_method": "auto-round", "packing_format": auto_round, "bits": bits, "group_size": group or -1,
                "sym": symmetric}
    return {"quant_method": "awq", "bits": bits, "group_size": group or -1, "zero_point": True, "version": "gemm",
            "modules_to_not_convert": ["lm_head", *ignore]}


def compressed_config(formats, ignore, symmetric, **unused):
    def weights(bits, group):
        return {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group" if group else "channel",
                "group_size": group or None, "dynamic": False, "actorder": None, "observer": "minmax"}

    groups = {f"group_{i}": {"targets": names, "weights": weights(*form), "input_activations": None,
                             "output_activations": None, "format": "pack-quantized"}
              for i, (form, names) in enumerate(formats.items())}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
            "config_groups": groups, "ignore": ["lm_head", *ignore], "kv_cache_scheme": None, "version": "0.17.1"}


FORMATS = {"compressed": (compressed, compressed_config), "gptq": (gptq, gptq_config), "awq": (awq, awq_config)}
SCALES = {"F16": f16, "BF16": bf16, "F32": f32}


def make(path, form="compressed", seed=3, bits=4, group=32, symmetric=False, dtype="F16", negative=False, mixed=None,
         keep=(), also=(), order=None, lowest=0, model=None, drop=(), cache_scales=False, beside=None, **options):
    """A checkpoint in the directory path. Returns {projection: Linear}.
    mixed    {"mlp.up_proj": (bits, group)}: other formats, in all layers
    keep     names of projections that stay F32, "model.layers.0.mlp.up_proj"
    also     names of other matrices that are packed, "lm_head"
    lowest   the smallest zero point
    order    of columns' groups: order[j] is the stored group of columns j * group ...
    model    other values of config.json
    cache_scales  add the scalars of an engine's fp8 cache
    drop     ends of names of tensors that are left out
    beside   the name of a further packed matrix, of 8 rows of 32"""
    pack, describe = FORMATS[form]
    path, rng, linears, named = pathlib.Path(path), random.Random(seed), {}, []
    formats = {}
    tiny.make_model(path, seed, **{**WIDE, **(model or {})})
    config = json.loads((path / "config.json").read_text())
    for name, kind, shape, data in tiny.model_tensors(config, seed):
        base = name.removesuffix(".weight")
        module = ".".join(base.split(".")[3:])
        if (module not in LINEARS + FUSED and ".experts." not in module and base not in also) or base in keep:
            named.append((name, kind, shape, data))
            continue
        b, g = (mixed or {}).get(module, (bits, group))
        x = linears[base] = Linear(rng, *shape, b, g, symmetric, SCALES[dtype], negative, lowest)
        formats.setdefault((b, g), []).append(base)
        g_idx = options.get("g_idx")
        if order:
            g_idx = [order[c // x.group] if x.groups == len(order) else c // x.group for c in range(x.cols)]
        named += pack(base, x, dtype, symmetric, **{**options, "g_idx": g_idx})
    if beside:
        named += pack(beside, Linear(rng, 8, 32, bits, 32, symmetric, SCALES[dtype], negative, lowest), dtype, symmetric,
                      **options)
    if cache_scales:
        named += [(f"model.layers.{i}.self_attn.{side}_scale", "F32", (1,), struct.pack("<f", 0.02))
                  for i in range(config["num_hidden_layers"]) for side in "kv"]
    config["quantization_config"] = describe(formats, sorted(keep), symmetric, **options)
    (path / "config.json").write_text(json.dumps(config, indent=1))
    tiny.write_safetensors(path / "model.safetensors", [t for t in named if not t[0].endswith(tuple(drop))])
    return linears
