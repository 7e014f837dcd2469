#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""An artifact reader written from docs/artifact.md alone, in the standard library. Checks every checksum
of ARTIFACT, unpacks every projection and compares it with round to nearest of the source weights in
MODEL_DIR (f32 arithmetic done here, from the definition). Usage: check_artifact.py MODEL_DIR ARTIFACT [BYTES],
where BYTES is the size of one token's cache as counted elsewhere."""
import json
import pathlib
import struct
import sys
import zlib

LINEARS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
           "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]


def f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def f16(x):
    return struct.unpack("<e", struct.pack("<e", x))[0]


def read_safetensors(path):
    raw = path.read_bytes()
    n = struct.unpack_from("<Q", raw)[0]
    header = json.loads(raw[8:8 + n])
    header.pop("__metadata__", None)
    return {name: (t["dtype"], t["shape"], raw[8 + n + t["data_offsets"][0]:8 + n + t["data_offsets"][1]])
            for name, t in header.items()}


def check_manifest(folder):
    text = (folder / "manifest.json").read_bytes()
    at = len(text) - 30
    assert text[at:at + 18] == b'"manifest_crc32":"', text[at:]
    assert zlib.crc32(text[:at]) == int(text[at + 18:at + 26], 16), "manifest crc"
    m = json.loads(text)
    assert m["format"] == "wkvq-artifact" and m["format_version"] == 1
    for name, f in m["files"].items():
        raw = (folder / name).read_bytes()
        assert len(raw) == f["bytes"] and zlib.crc32(raw) == int(f["crc32"], 16), name
    return m


def tensors_of(folder, manifest):
    out = {}
    for file in sorted({t["file"] for t in manifest["tensors"].values()}):
        out.update(read_safetensors(folder / file))
    assert set(out) == set(manifest["tensors"])
    for name, t in manifest["tensors"].items():
        dtype, shape, data = out[name]
        assert (dtype, shape) == (t["dtype"], t["shape"]), name
        assert len(data) == t["bytes"] and zlib.crc32(data) == int(t["crc32"], 16), name
    return out


def floats(dtype, data):
    if dtype == "BF16":
        return [struct.unpack("<f", b"\0\0" + data[i:i + 2])[0] for i in range(0, len(data), 2)]
    kind = {"F16": "e", "F32": "f"}[dtype]
    return list(struct.unpack(f"<{len(data) // struct.calcsize(kind)}{kind}", data))


def unpack(row, n, bits):
    stream = int.from_bytes(row, "little")  # bit k of the row is bit k of this integer
    assert stream >> n * bits == 0, "unused bits are not 0"
    return [stream >> i * bits & (1 << bits) - 1 for i in range(n)]


def rows_of(data, count):
    return [data[i * len(data) // count:(i + 1) * len(data) // count] for i in range(count)]


def read_linear(tensors, name, cols, bits, group):
    """Returns codes, zeros and scales, one list per row."""
    rows = tensors[name + ".scales"][1][0]
    groups = -(-cols // group)
    q = [unpack(r, cols, bits) for r in rows_of(tensors[name + ".qweight"][2], rows)]
    z = [unpack(r, groups, bits) for r in rows_of(tensors[name + ".zeros"][2], rows)]
    h = floats("F16", tensors[name + ".scales"][2])
    return q, z, [h[r * groups:(r + 1) * groups] for r in range(rows)]


def expected_row(w, bits, group):
    """Returns codes, zeros and scales by round to nearest, in f32."""
    top = (1 << bits) - 1
    q, z, h = [], [], []
    for begin in range(0, len(w), group):
        part = w[begin:begin + group]
        lo, hi = min(0.0, min(part)), max(0.0, max(part))
        h.append(f16(min(max(f32(f32(hi - lo) / top), 2.0 ** -24), 65504.0)))
        z.append(min(max(round(f32(-lo / h[-1])), 0), top))
        q += [min(max(round(f32(x / h[-1])) + z[-1], 0), top) for x in part]
    return q, z, h


def formats(spec, kinds, layers):
    """Returns bits and group of a layer's kind: those of the last rule in spec["mixed"] that applies, else spec's own."""
    out = {(layer, kind): (spec["bits"], spec["group_size"]) for layer in range(layers) for kind in kinds}
    for rule in spec["mixed"].split(",") if "mixed" in spec else []:
        where, _, value = rule.strip().partition("=")
        span, _, kind = where.rpartition(".")
        first, _, last = span.partition("-")
        bits, _, group = value.partition(":")
        assert kind in kinds and (2 <= int(bits) <= 8 or int(bits) == 16), rule
        for layer in range(int(first or 0), int(last or first or layers - 1) + 1):
            assert layer < layers, rule
            out[layer, kind] = int(bits), int(group or spec["group_size"])
    return out


def cache_bytes(config, kv):
    """Returns the bytes of one token, as docs/artifact.md counts them."""
    heads, d = config["num_key_value_heads"], config["head_dim"]
    return sum(heads * (2 * d if bits == 16 else -(-d * bits // 8) + 4 * -(-d // min(group or d, d)))
               for bits, group in formats(kv, ("k", "v"), config["num_hidden_layers"]).values())


def check_end(tensors, source, name, spec):
    """Embedding or head: every code is the nearest under the stored scale and zero."""
    dtype, (rows, cols), data = source.pop(name + ".weight")
    bits, group = spec["bits"], spec["group_size"] or cols
    q, z, h = read_linear(tensors, name, cols, bits, group)
    w = floats(dtype, data)
    for r in range(rows):
        for c in range(cols):
            g = c // group
            code = min(max(round(f32(w[r * cols + c] / h[r][g])) + z[r][g], 0), (1 << bits) - 1)
            assert q[r][c] == code, f"{name} [{r}][{c}]"


def version_of(spec):
    if not spec["kv"].get("target", "llama.cpp").startswith("llama.cpp"):
        return 9
    if "activations" in spec:
        return 8
    if "target" in spec["kv"]:
        return 7
    if spec["weights"]["method"] == "given":
        return 6
    if "head" in spec:
        return 5
    return 3 if "mixed" in spec["weights"] or "mixed" in spec["kv"] else 2 if "rotate" in spec["kv"] else 1


def main():
    model, folder = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    manifest = check_manifest(folder)
    config = json.loads((folder / "config.json").read_text())
    spec = config.pop("quantization_config")
    assert spec["format"] == "wkvq" and "quant_method" not in spec and spec["format_version"] == version_of(spec)
    assert config == json.loads((model / "config.json").read_text())
    tensors, source = tensors_of(folder, manifest), read_safetensors(model / "model.safetensors")
    weights, widths = 0, set()
    kinds = [module.split(".")[1] for module in LINEARS]
    packed = formats(spec["weights"], kinds, config["num_hidden_layers"])
    for layer in range(config["num_hidden_layers"]):
        for module in LINEARS:
            name = f"model.layers.{layer}.{module}"
            bits, group = packed[layer, module.split(".")[1]]
            widths.add(bits)
            if bits == 16:  # carried over, below
                weights += source[name + ".weight"][1][0] * source[name + ".weight"][1][1]
                continue
            dtype, (rows, cols), data = source.pop(name + ".weight")
            group = group or cols
            q, z, h = read_linear(tensors, name, cols, bits, group)
            w = floats(dtype, data)
            for r in range(rows):
                assert (q[r], z[r], h[r]) == expected_row(w[r * cols:(r + 1) * cols], bits, group), \
                    f"{name}: row {r}"
            weights += rows * cols
    if "head" in spec:
        assert spec["modules_to_not_convert"] == []
        for name in ("model.embed_tokens",) if config["tie_word_embeddings"] else ("model.embed_tokens", "lm_head"):
            check_end(tensors, source, name, spec["head"])
            assert name + ".weight" not in tensors
    for name, tensor in source.items():  # what is left is carried over as it is
        if not (config["tie_word_embeddings"] and name == "lm_head.weight"):
            assert tensors[name] == tensor, name
    if len(sys.argv) > 3:
        assert cache_bytes(config, spec["kv"]) == int(sys.argv[3]), (cache_bytes(config, spec["kv"]), sys.argv[3])
    print(f"{folder}: {len(tensors)} tensors, {weights} weights at {sorted(widths)} bits agree")


if __name__ == "__main__":
    main()
