# SPDX-License-Identifier: MIT
"""Runs exports to GGUF, and compares every tensor of a file with the artifact that it was made from."""
import json
import pathlib
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "convert"))
import check_artifact as artifact_reader  # noqa: E402
import gguf_reader  # noqa: E402
import harness  # noqa: E402

LINEARS = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
           "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
           "mlp.down_proj": "ffn_down"}
VECTORS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_norm": "attn_q_norm",
           "self_attn.k_norm": "attn_k_norm"}
AROUND = {"input_layernorm": "attn_norm", "pre_feedforward_layernorm": "ffn_norm",
          "post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm",
          "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
BEHIND = {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm",
          "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
NORMS = {"olmo2": BEHIND, "gemma3_text": AROUND}


def f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


class Bench(harness.Bench):
    def __init__(self, wkvq, folder):
        super().__init__(wkvq, folder)
        self.n = 0

    def place(self, kind):
        self.n += 1
        return self.path / f"{kind}{self.n}"

    def convert(self, model, *settings):
        out = self.place("artifact")
        self.run("convert", model, "-o", out, "-q", "-j1", *harness.words(settings))
        return out

    def export(self, artifact, *options):
        out = self.place("model").with_suffix(".gguf")
        self.run("export", artifact, "--format", "gguf", "-o", out, "-q", *options)
        return out

    def plan(self, artifact, *options):
        """Returns the plan of an export."""
        return json.loads(self.run("export", artifact, "--format", "gguf", "--plan", "--json", "-q", *options).stdout)

    def refuse(self, artifact, words, *options):
        out = self.place("refused")
        text = self.run("export", artifact, "--format", "gguf", "-o", out, "-q", *options, want=2).stderr
        assert all(w in text for w in words), f"{text}\nlacks one of {words}"
        assert not list(self.path.glob(f"{out.name}*")), "a file is left"


class Artifact:
    def __init__(self, folder):
        self.config = json.loads((folder / "config.json").read_text())
        self.spec = self.config["quantization_config"]
        self.tensors = artifact_reader.tensors_of(folder, artifact_reader.check_manifest(folder))
        kinds = [m.split(".")[1] for m in LINEARS]
        self.formats = artifact_reader.formats(self.spec["weights"], kinds, self.config["num_hidden_layers"])
        heads = self.config["num_attention_heads"]
        self.head_dim = self.config.get("head_dim") or self.config["hidden_size"] // heads


def interleaved(rows, head_dim):
    """Row (head, 2 i + p) is row (head, p head_dim / 2 + i): both halves of a head, in turns."""
    out = []
    for head in range(0, len(rows), head_dim):
        first, second = rows[head:head + head_dim // 2], rows[head + head_dim // 2:head + head_dim]
        out += [row for pair in zip(first, second) for row in pair]
    return out


def turned(a, module, rows):
    llama = a.config["model_type"] in ("llama", "mistral", "granite", "smollm3", "mixtral")
    return interleaved(rows, a.head_dim) if llama and module in ("self_attn.q_proj", "self_attn.k_proj") else rows


def check_codes(a, g, module, name, tensor, bits, group):
    """Returns the worst |error| in units of h. Codes and scales are always exact."""
    title, (rows, cols), _ = g.tensors[tensor]
    codes, zeros, scales = artifact_reader.read_linear(a.tensors, name, cols, bits, group or cols)
    assert len(codes) == rows, tensor
    worst = 0.0
    for row, (q, z, h) in zip(g.rows(tensor), turned(a, module, list(zip(codes, zeros, scales)))):
        for b, (d, m, have) in enumerate(gguf_reader.blocks(title, row)):
            i = b * 32 // (group or cols)
            offset = z[i] if title == "Q8_0" else 0
            assert d == h[i], (tensor, b, d, h[i])
            assert list(have) == [x - offset for x in q[b * 32:b * 32 + 32]], (tensor, b)
            error = abs(m + z[i] * h[i]) if title != "Q8_0" else 0.0
            assert error <= z[i] * h[i] * 2.0 ** -11, (tensor, b, error)
            worst = max(worst, error / h[i])
    return worst


def check_stored(a, g, module, name, tensor):
    dtype, shape, data = a.tensors[name]
    title, have_shape, have = g.tensors[tensor]
    rows = [data[i * len(data) // shape[0]:(i + 1) * len(data) // shape[0]] for i in range(shape[0])]
    assert title == dtype and have_shape == shape, tensor
    assert b"".join(turned(a, module, rows)) == have, tensor


def check_vector(a, g, module, name, tensor):
    dtype, _, data = a.tensors[name]
    assert g.tensors[tensor][0] == "F32", tensor
    plus = a.config["model_type"] == "gemma3_text" and name.endswith("norm.weight")
    want = [f32(x + plus) for x in artifact_reader.floats(dtype, data)]
    assert turned(a, module, want) == g.floats(tensor), tensor


def check_values(a, g, name, tensor, bits, group):
    """F16 in place of codes that no block holds."""
    cols = a.config["hidden_size"]
    q, z, h = artifact_reader.read_linear(a.tensors, name, cols, bits, group or cols)
    want = [artifact_reader.f16((q[r][c] - z[r][c // (group or cols)]) * h[r][c // (group or cols)])
            for r in range(len(q)) for c in range(cols)]
    assert g.tensors[tensor][:2] == ("F16", [len(q), cols]) and g.floats(tensor) == want, tensor


def check_end(a, g, name, tensor, types):
    """Embedding or head. Returns the worst |error| in units of h."""
    head = a.spec.get("head")
    if not head:
        check_stored(a, g, "", name + ".weight", tensor)
    elif types[head["bits"]] == "F16":
        check_values(a, g, name, tensor, head["bits"], head["group_size"])
    else:
        assert g.tensors[tensor][0] == types[head["bits"]], tensor
        return check_codes(a, g, "", name, tensor, head["bits"], head["group_size"])
    return 0.0


ROPE = {"rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"}


def split_fused(a, g):
    """Phi3's attn_qkv holds the rows of q, k, v, unless only some are quantized, and ffn_up those of gate, up."""
    kv = a.config["hidden_size"] // a.config["num_attention_heads"] * a.config["num_key_value_heads"]
    for layer in range(a.config["num_hidden_layers"]):
        bits = [a.formats[layer, m][0] for m in ("q_proj", "k_proj", "v_proj")]
        fused = {"ffn_up": {"ffn_gate": a.config["intermediate_size"], "ffn_up": a.config["intermediate_size"]}}
        if max(bits) < 16 or min(bits) == 16:
            fused["attn_qkv"] = {"attn_q": a.config["hidden_size"], "attn_k": kv, "attn_v": kv}
        for whole, parts in fused.items():
            title, (rows, cols), data = g.tensors.pop(f"blk.{layer}.{whole}.weight")
            assert rows == sum(parts.values())
            row_bytes = len(data) // rows
            for name, n in parts.items():
                g.tensors[f"blk.{layer}.{name}.weight"] = title, (n, cols), data[:n * row_bytes]
                data = data[n * row_bytes:]


FUSED = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")


ROUTERS = {"qwen3_moe": "mlp.gate", "mixtral": "block_sparse_moe.gate"}


def stack_experts(a, g, router):
    """Checks the routers, and leaves the experts of a layer as one matrix on both sides."""
    shape = {t: (f, h) if t != "ffn_down" else (h, f) for t in ("ffn_gate", "ffn_up", "ffn_down")
             for f, h in [(a.config.get("moe_intermediate_size", a.config["intermediate_size"]), a.config["hidden_size"])]}
    n = a.config.get("num_experts", a.config.get("num_local_experts"))
    for layer in range(a.config["num_hidden_layers"]):
        dtype, dims, data = a.tensors[f"model.layers.{layer}.{router}.weight"]
        tensor = f"blk.{layer}.ffn_gate_inp.weight"
        assert g.tensors[tensor][:2] == ("F32", [n, a.config["hidden_size"]]) and dims == g.tensors[tensor][1], tensor
        assert [f32(x) for x in artifact_reader.floats(dtype, data)] == g.floats(tensor), tensor
        del g.tensors[tensor]
        for short, (rows, cols) in shape.items():
            title, have, data = g.tensors.pop(f"blk.{layer}.{short}_exps.weight")
            assert have == [n, rows, cols], (short, have)
            g.tensors[f"blk.{layer}.{short}.weight"] = title, [n * rows, cols], data
    for name in [t for t in a.tensors if ".mlp.experts." in t]:
        dtype, dims, data = a.tensors.pop(name)
        dims = [dims[0] * dims[1], dims[2]] if len(dims) == 3 else dims
        a.tensors[name.replace(".experts", "")] = dtype, dims, data


def sibling_bits(a, layer, module):
    """The most bits of the projections that are in one tensor with the module; 0: none."""
    name = module.split(".")[1]
    if a.config["model_type"] != "phi3":
        return 0
    bits = [a.formats[layer, m][0] for group in FUSED if name in group for m in group]
    return max(bits, default=0) % 16


def check_weights(a, g, types):
    """Compares all tensors; types: {bits: type}. Returns the worst |error| in units of h."""
    if a.config["model_type"] == "phi3":
        split_fused(a, g)
    if a.config["model_type"] in ROUTERS:
        stack_experts(a, g, ROUTERS[a.config["model_type"]])
    seen = {"token_embd.weight", "output_norm.weight"}
    worst = check_end(a, g, "model.embed_tokens", "token_embd.weight", types)
    check_vector(a, g, "", "model.norm.weight", "output_norm.weight")
    if not a.config["tie_word_embeddings"]:
        seen.add("output.weight")
        worst = max(worst, check_end(a, g, "lm_head", "output.weight", types))
    for layer in range(a.config["num_hidden_layers"]):
        for module, short in LINEARS.items():
            name, tensor = f"model.layers.{layer}.{module}", f"blk.{layer}.{short}"
            bits, group = a.formats[layer, module.split(".")[1]]
            seen.add(tensor + ".weight")
            if bits == 16:
                check_stored(a, g, module, name + ".weight", tensor + ".weight")
            else:
                assert g.tensors[tensor + ".weight"][0] == types[max(bits, sibling_bits(a, layer, module))], tensor
                worst = max(worst, check_codes(a, g, module, name, tensor + ".weight", bits, group))
            if name + ".bias" in a.tensors:
                seen.add(tensor + ".bias")
                check_vector(a, g, module, name + ".bias", tensor + ".bias")
        for module, short in NORMS.get(a.config["model_type"], VECTORS).items():
            name = f"model.layers.{layer}.{module}.weight"
            if name in a.tensors:
                seen.add(f"blk.{layer}.{short}.weight")
                check_vector(a, g, "", name, f"blk.{layer}.{short}.weight")
    assert set(g.tensors) - ROPE == seen, set(g.tensors) ^ seen
    return worst


DEFAULT = {2: "Q4_1", 3: "Q4_1", 4: "Q4_1", 5: "Q5_1", 6: "Q8_0", 7: "Q8_0", 8: "F16"}
EXACT = {**dict.fromkeys(range(2, 8), "Q8_0"), 8: "F16"}
