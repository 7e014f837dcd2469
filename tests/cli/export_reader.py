# SPDX-License-Identifier: MIT
"""An artifact, and a second reader of every format that an export of a directory has, written from docs/export.md in the
standard library, for test_export.py."""
import json
import pathlib
import re
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "convert"))
import check_artifact as reader

KINDS = [module.split(".")[1] for module in reader.LINEARS]
CACHE = re.compile(r"self_attn\.[kv]_(scale|shift)$")
PACKED = re.compile(r"\.(qweight|scales|zeros)$")
ENDS = ["model.embed_tokens", "lm_head"]
FUSED = {"self_attn.qkv_proj": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
         "mlp.gate_up_proj": ["mlp.gate_proj", "mlp.up_proj"]}
# The modules of an expert, in the order of gate, up, down, which the artifact has as one for all experts of a layer.
EXPERTS = {"qwen3_moe": ("mlp.experts", ["gate_proj", "up_proj", "down_proj"]),
           "mixtral": ("block_sparse_moe.experts", ["w1", "w3", "w2"])}
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


# --- the artifact ---

def dequantized(tensors, name, cols, bits, group):
    group = group or cols
    return [[(q[c] - z[c // group]) * h[c // group] for c in range(cols)]
            for q, z, h in zip(*reader.read_linear(tensors, name, cols, bits, group))]


class Artifact:
    """values[name]: [out][in] of every quantized projection, and ends of the quantized embedding and head; rest: all
    tensors that an export must keep."""

    def __init__(self, folder):
        self.folder = folder
        manifest = reader.check_manifest(folder)
        tensors = reader.tensors_of(folder, manifest)
        self.config = json.loads((folder / "config.json").read_text())
        whole = self.config.pop("quantization_config")
        spec, head = whole["weights"], whole.get("head")
        self.values, self.bits, self.ends = {}, {}, {}
        self.head_bits = head["bits"] if head else 16
        self.experts = EXPERTS.get(self.config["model_type"])
        for (layer, kind), (bits, group) in reader.formats(spec, KINDS, self.config["num_hidden_layers"]).items():
            module = reader.LINEARS[KINDS.index(kind)]
            if self.experts and module.startswith("mlp."):
                module = module.replace("mlp.", "mlp.experts.")
            name = f"model.layers.{layer}.{module}"
            self.bits[name] = bits
            if bits == 16:
                continue
            cols = self.columns(kind)
            self.values[name] = dequantized(tensors, name, cols, bits, group)
        for name in ENDS[:1 if self.config["tie_word_embeddings"] else 2] if head else []:
            self.ends[name] = dequantized(tensors, name, self.config["hidden_size"], head["bits"], head["group_size"])
        self.rest = {name: t for name, t in tensors.items() if not CACHE.search(name) and not PACKED.search(name)}
        for layer in range(self.config["num_hidden_layers"] if self.config["model_type"] == "phi3" else 0):
            for module, parts in FUSED.items():
                self.fuse(*(f"model.layers.{layer}.{name}" for name in [module, *parts]))
        for layer in range(self.config["num_hidden_layers"] if self.experts else 0):
            for module, part in zip(EXPERTS["qwen3_moe"][1], self.experts[1]):
                self.split(layer, module, part)

    def split(self, layer, module, part):
        """The weights of each expert, of a module that the artifact has for all of them."""
        name, folder = f"model.layers.{layer}.mlp.experts.{module}", self.experts[0]
        count = self.config.get("num_experts") or self.config["num_local_experts"]
        bits, plain, values = self.bits.pop(name), self.rest.pop(name + ".weight", None), self.values.pop(name, None)
        for e in range(count):
            one = f"model.layers.{layer}.{folder}.{e}.{part}"
            self.bits[one] = bits
            if plain:
                dtype, (rows, cols), data = plain
                self.rest[one + ".weight"] = dtype, [rows // count, cols], reader.rows_of(data, count)[e]
            else:
                self.values[one] = values[e * len(values) // count:(e + 1) * len(values) // count]

    def fuse(self, name, *parts):
        """The rows of a family's fused module, which an artifact has as parts."""
        plain = [self.rest.pop(p + ".weight") for p in parts if self.bits[p] == 16]
        self.bits[name] = min(self.bits.pop(p) for p in parts)
        if len(plain) == len(parts):
            dtype, (_, cols), _ = plain[0]
            self.rest[name + ".weight"] = dtype, [sum(t[1][0] for t in plain), cols], b"".join(t[2] for t in plain)
            return
        self.values[name] = []
        for p in parts:
            if p in self.values:
                self.values[name] += self.values.pop(p)
            else:
                dtype, shape, data = plain.pop(0)
                self.values[name] += matrix(reader.floats(dtype, data), shape[0])

    def columns(self, kind):
        heads, hidden = self.config["num_attention_heads"], self.config["hidden_size"]
        if kind == "o_proj":
            return heads * (self.config.get("head_dim") or hidden // heads)
        width = self.config.get("moe_intermediate_size") or self.config["intermediate_size"]
        return width if kind in ("down_proj", "w2") else hidden


# --- the second readers ---

def words(data):
    return [w[0] for w in struct.iter_unpack("<I", data)]


def fields(row, n, bits):
    """n codes of a row of words, lowest bits first. The bits after them must be 0."""
    stream = sum(w << 32 * i for i, w in enumerate(row))
    assert stream >> n * bits == 0, "unused bits are not 0"
    return [stream >> i * bits & (1 << bits) - 1 for i in range(n)]


def matrix(flat, rows):
    n = len(flat) // rows
    return [flat[r * n:(r + 1) * n] for r in range(rows)]


def take(tensors, name, dtype):
    have, shape, data = tensors.pop(name)
    assert have == dtype, (name, have)
    return shape, data


def scheme_of(config, name):
    """The weights' scheme of a Linear module as compressed-tensors finds it, or None."""
    if any(name == i or i.startswith("re:") and re.match(i[3:], name) for i in config["ignore"]):
        return None
    found = [group["weights"] for group in config["config_groups"].values()
             if any(t == "Linear" or t.startswith("re:") and re.match(t[3:], name) for t in group["targets"])]
    assert len(found) == 1, (name, found)
    return found[0]


def read_compressed(tensors, config, name, cols):
    scheme = scheme_of(config, name)
    if scheme is None:
        return None
    bits, group = scheme["num_bits"], scheme["group_size"] or cols
    assert scheme["type"] == "int" and scheme["symmetric"] is False and bits in (4, 8)
    assert (scheme["strategy"] == "channel") == (scheme["group_size"] is None)
    assert scheme["group_size"] in (None, 32, 64, 128) and cols % group == 0
    shape, data = take(tensors, name + ".weight_shape", "I64")
    rows, in_features = struct.unpack("<2q", data)
    assert shape == [2] and in_features == cols
    shape, data = take(tensors, name + ".weight_packed", "I32")
    assert shape == [rows, -(-cols * bits // 32)], shape
    codes = [fields(row, cols, bits) for row in matrix(words(data), rows)]
    shape, data = take(tensors, name + ".weight_scale", "F16")
    assert shape == [rows, cols // group]
    scales = matrix(reader.floats("F16", data), rows)
    shape, data = take(tensors, name + ".weight_zero_point", "I32")
    assert shape == [-(-rows * bits // 32), cols // group]
    columns = [fields(column, rows, bits) for column in zip(*matrix(words(data), shape[0]))]
    return [[(codes[r][c] - columns[c // group][r]) * scales[r][c // group] for c in range(cols)]
            for r in range(rows)]


def read_awq(tensors, config, name, cols):
    if any(part in name for part in config["modules_to_not_convert"]):  # as vLLM does, parts of names count
        return None
    assert config["bits"] == 4 and config["zero_point"] is True and config["version"] == "gemm"
    group = cols if config["group_size"] == -1 else config["group_size"]
    assert config["group_size"] in (-1, 32, 64, 128) and cols % group == 0

    def nibbles(name, count):
        shape, data = take(tensors, name, "I32")
        assert shape[0] == count
        out = []
        for line in matrix(words(data), count):
            row = [0] * 8 * len(line)
            for j, word in enumerate(line):
                for i, o in enumerate(AWQ_ORDER):
                    row[8 * j + o] = word >> 4 * i & 15
            out.append(row)
        return out

    codes, zeros = nibbles(name + ".qweight", cols), nibbles(name + ".qzeros", cols // group)
    shape, data = take(tensors, name + ".scales", "F16")
    assert shape == [cols // group, len(codes[0])]
    scales = matrix(reader.floats("F16", data), shape[0])
    return [[(codes[c][r] - zeros[c // group][r]) * scales[c // group][r] for c in range(cols)]
            for r in range(shape[1])]


def rounded(x, dtype):
    if dtype == "F16":
        return struct.unpack("<e", struct.pack("<e", x))[0]
    if dtype == "F32":
        return struct.unpack("<f", struct.pack("<f", x))[0]
    u, = struct.unpack("<I", struct.pack("<f", x))
    return struct.unpack("<f", struct.pack("<I", u + 0x7FFF + (u >> 16 & 1) & 0xFFFF0000))[0]


def tensors_in(folder):
    index = folder / "model.safetensors.index.json"
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found.update(reader.read_safetensors(file))
    assert index.exists() == (not (folder / "model.safetensors").exists())
    if index.exists():
        places = json.loads(index.read_text())["weight_map"]
        assert set(places) == set(found) and set(places.values()) == {f.name for f in folder.glob("*.safetensors")}
    return found
