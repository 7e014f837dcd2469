#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""`wkvq export --format gguf`: test_gguf.py WKVQ DEMO_DIR GOLDEN_MODELS.

Every block of a file is decoded and compared with the artifact, both by readers of their own. Keys,
rows that are interleaved, equal bytes, and what is refused."""
import json
import math
import os
import pathlib
import shutil
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "convert"))
import check_artifact as artifact_reader  # noqa: E402
import forge  # noqa: E402
import gguf_bench  # noqa: E402
import gguf_reader  # noqa: E402
import harness  # noqa: E402
import tiny  # noqa: E402
from gguf_bench import DEFAULT, EXACT, LINEARS, Artifact, check_weights, f32  # noqa: E402

WIDE = {"hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 6, "num_key_value_heads": 2,
        "head_dim": 16, "num_hidden_layers": 2}


class Bench(gguf_bench.Bench):
    def __init__(self, wkvq, demo, golden, folder):
        super().__init__(wkvq, folder)
        self.demo, self.golden, self.model = pathlib.Path(demo).resolve(), pathlib.Path(golden).resolve(), self.place("tiny")
        tiny.make_model(self.model, **WIDE)


# --- the demo model -------------------------------------------------------------------------------------------


def test_demo(bench):
    folder = bench.convert(bench.demo)
    a = Artifact(folder)
    first = bench.export(folder, "-j1")
    assert first.read_bytes() == bench.export(folder, "-j3").read_bytes(), "not the same bytes twice"
    worst = check_weights(a, gguf_reader.Gguf(first), DEFAULT)
    assert 0 < worst <= 15 * 2.0 ** -11, worst
    exact = gguf_reader.Gguf(bench.export(folder, "--weights", "q8_0"))
    assert check_weights(a, exact, EXACT) == 0
    plan = bench.plan(folder)
    assert plan["bytes"] == first.stat().st_size
    assert any("is rounded in" in n["text"] for n in plan["notes"])
    few = bench.convert(bench.demo, "weights.scale_bits=8", "weights.bits=3", "weights.mixed=0.q_proj=4")
    plan = bench.plan(few)
    assert any("is rounded in < 1 % of groups" in n["text"] for n in plan["notes"]), plan["notes"]
    folder = bench.convert(bench.demo, "weights.scale_bits=7")
    assert check_weights(Artifact(folder), gguf_reader.Gguf(bench.export(folder)), DEFAULT) == 0
    plan = bench.plan(folder)
    assert any("weights, exactly" in n["text"] for n in plan["notes"]), plan


def test_demo_keys(bench):
    g = gguf_reader.Gguf(bench.export(bench.convert(bench.demo), "--base-model", "someone/demo-1", "--license", "mit"))
    config = json.loads((bench.demo / "config.json").read_text())
    want = {
        "general.architecture": "llama", "general.type": "model", "general.name": "demo-1", "general.license": "mit",
        "general.base_model.count": 1, "general.base_model.0.name": "demo-1",
        "general.base_model.0.organization": "someone",
        "general.file_type": 3, "general.quantization_version": 2, "llama.block_count": config["num_hidden_layers"],
        "llama.context_length": config["max_position_embeddings"], "llama.embedding_length": config["hidden_size"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": config["num_attention_heads"],
        "llama.attention.head_count_kv": config["num_key_value_heads"], "llama.attention.key_length": 64,
        "llama.attention.value_length": 64, "llama.vocab_size": config["vocab_size"],
        "llama.rope.dimension_count": 64, "llama.rope.freq_base": 10000.0,
        "llama.attention.layer_norm_rms_epsilon": struct.unpack("<f", struct.pack("<f", 1e-5))[0],
    }
    assert {k: g.keys.get(k) for k in want} == want
    unnamed = gguf_reader.Gguf(bench.export(bench.convert(bench.demo))).keys
    assert unnamed["general.name"].startswith("artifact") and "general.license" not in unnamed
    assert "general.base_model.count" not in unnamed
    unwritable = bench.path / os.fsdecode(b"\xff")
    bench.convert(bench.demo).rename(unwritable)
    for place in (unwritable, f"{unwritable.name}/."):
        assert gguf_reader.Gguf(bench.export(place)).keys["general.name"] == "model"
    licensed = bench.place("licensed")
    shutil.copytree(bench.demo, licensed)
    (licensed / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert gguf_reader.Gguf(bench.export(bench.convert(licensed))).keys["general.license"] == "apache-2.0"
    assert not any("scaling" in k for k in g.keys) and "rope_freqs.weight" not in g.tensors


# --- every bit width, ragged groups, whole rows ---------------------------------------------------------------


def test_widths(bench):
    for bits in range(2, 8):
        for group in (64, 0) if bits == 4 else (64,):
            folder = bench.convert(bench.model, f"weights.bits={bits}", f"weights.group_size={group}")
            g = gguf_reader.Gguf(bench.export(folder))
            worst = check_weights(Artifact(folder), g, DEFAULT)
            assert worst == 0 or bits <= 5, worst
            assert g.keys["general.file_type"] == {"Q4_1": 3, "Q5_1": 9, "Q8_0": 7}[DEFAULT[bits]]
            assert check_weights(Artifact(folder), gguf_reader.Gguf(bench.export(folder, "--weights", "q8_0")), EXACT) == 0
    folder = bench.convert(bench.model, "weights.bits=4", "weights.group_size=32", "weights.mixed=1.q_proj=16, down_proj=6:96")
    g = gguf_reader.Gguf(bench.export(folder))
    check_weights(Artifact(folder), g, DEFAULT)
    assert g.keys["general.file_type"] == 3, "that of most weights"


# --- a quantized embedding and head ---------------------------------------------------------------------------


def remake(bench, change, **config):
    """A copy of the tiny model in which change(tensors) has been called."""
    out = bench.place("remade")
    tiny.make_model(out, **{**WIDE, **config})
    tensors = artifact_reader.read_safetensors(out / "model.safetensors")
    change(tensors)
    tiny.write_safetensors(out / "model.safetensors", [(n, *t) for n, t in tensors.items()])
    return out


def centre(tensors):
    """Every group of 32 columns has the 8-bit codes 0 to 255 around a zero point of 128, with scale 2^-10."""
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        dtype, shape, _ = tensors[name]
        values = [(-128 if c % 32 == 0 else 127 if c % 32 == 1 else (c * 29 + r * 7) % 256 - 128) / 1024
                  for r in range(shape[0]) for c in range(shape[1])]
        tensors[name] = dtype, shape, struct.pack(f"<{len(values)}f", *values)


def notes(bench, folder, *options):
    return [f"{n['fate']}: {n['text']}" for n in bench.plan(folder, *options)["notes"]]


def test_head(bench):
    tied = remake(bench, lambda t: t.pop("lm_head.weight"), tie_word_embeddings=True)
    for bits in range(2, 9):
        for source in (bench.model, tied):
            folder = bench.convert(source, "weights.group_size=32", f"head.bits={bits}", "head.group_size=64")
            g = gguf_reader.Gguf(bench.export(folder, "-j3"))
            check_weights(Artifact(folder), g, DEFAULT)
            assert g.keys["general.file_type"] == 3, "the head decides the type of the file"
            assert check_weights(Artifact(folder), gguf_reader.Gguf(bench.export(folder, "--weights", "q8_0")), EXACT) == 0
    assert any(n.startswith("changed: model.embed_tokens, of 8 bits, as values in F16") for n in notes(bench, folder))
    folder = bench.convert(bench.model, "weights.bits=16", "head.bits=4", "head.group_size=48")
    check_weights(Artifact(folder), gguf_reader.Gguf(bench.export(folder)), {4: "F16"})
    sevens = bench.convert(bench.model, "weights.group_size=32", "weights.scale_bits=7", "head.bits=4", "head.group_size=0")
    assert check_weights(Artifact(sevens), gguf_reader.Gguf(bench.export(sevens)), DEFAULT) == 0
    assert "carried: lm_head, of 4 bits, as Q4_1" in notes(bench, sevens)
    fitting = bench.convert(remake(bench, centre), "weights.bits=16", "head.bits=8", "head.group_size=32")
    assert check_weights(Artifact(fitting), gguf_reader.Gguf(bench.export(fitting)), {**DEFAULT, 8: "Q8_0"}) == 0


# --- every family ---------------------------------------------------------------------------------------------



def longrope(length):
    """The keys of a longrope of up to 48 tokens in a model of `length`."""
    return {"rope.scaling.original_context_length": 48,
            "rope.scaling.attn_factor": f32(math.sqrt(1 + math.log(length / 48) / math.log(48)))}


# model: (architecture, setting of weights.mixed, keys of it)
GOLDEN = {
    "llama1_mha": ("llama", {}), "llama2_gqa": ("llama", {}), "llama_base": ("llama", {}),
    "llama_bias": ("llama", {}), "llama_mlp_bias": ("llama", {}), "llama_tied_bf16": ("llama", {}),
    "tied_head_only": ("llama", {}), "tied_twice": ("llama", {}), "llama_f16": ("llama", {}),
    "dynamic_rope": ("llama", {}), "llama3_rope": ("llama", {}), "llama3_rope_old": ("llama", {}),
    "linear_rope": ("llama", {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
    "mistral": ("llama", {"context_length": 64}),
    "granite": ("granite", {"embedding_scale": 3.0, "attention.scale": f32(0.15), "residual_scale": f32(0.4),
                            "logit_scale": f32(1.7)}),
    "granite_bias": ("granite", {"embedding_scale": 2.5, "attention.scale": 1.0, "residual_scale": 1.0,
                                 "logit_scale": 1.0}),
    "mistral_window": ("llama", {"context_length": 20}), "qwen2_window": ("qwen2", {"context_length": 7}),
    "smollm3": ("smollm3", {}),
    "phi3": ("phi3", {"context_length": 20, "rope.dimension_count": 8}),
    "phi3_longrope": ("phi3", {"context_length": 48, "rope.dimension_count": 8, **longrope(128)}),
    "phi4_mini": ("phi3", {"context_length": 48, "rope.dimension_count": 12, **longrope(128)}),
    "olmo2": ("olmo2", {"rope.freq_base": 5e5}),
    "qwen2": ("qwen2", {"rope.freq_base": 1e6}), "qwen3": ("qwen3", {}),
    "qwen3_moe": ("qwen3moe", {"expert_count": 6, "expert_used_count": 3, "expert_feed_forward_length": 16}),
    "mixtral": ("llama", {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 24}),
    "yarn": ("llama", {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.attn_factor": 1.0,
                       "rope.scaling.original_context_length": 32, "rope.scaling.yarn_beta_fast": 32.0,
                       "rope.scaling.yarn_beta_slow": 1.0}),
    "yarn_mscale": ("qwen2", {"rope.scaling.type": "yarn", "rope.scaling.attn_factor": f32(
        (0.14 * math.log(4) + 1) / (0.06 * math.log(4) + 1) / (0.1 * math.log(4) + 1))}),
}


def unfit(config):
    """The projections whose rows are no multiple of 32 columns."""
    d = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    o, hidden = config["num_attention_heads"] * d, config["hidden_size"]
    columns = {"down_proj": config.get("moe_intermediate_size", config["intermediate_size"]), "o_proj": o}
    return [m.split(".")[1] for m in LINEARS if columns.get(m.split(".")[1], hidden) % 32]


def test_fused(bench):
    """Phi3: q, k, v and gate, up are one tensor, in blocks that hold the codes of all."""
    model = bench.place("fused")
    tiny.make_model(model, model_type="phi3", architectures=["Phi3ForCausalLM"], **WIDE)
    folder = bench.convert(model, "weights.group_size=32", "weights.mixed=gate_proj=5,0.up_proj=3,1.up_proj=6,"
                           "0.q_proj=3,0.k_proj=6,1.v_proj=16")
    check_weights(Artifact(folder), gguf_reader.Gguf(bench.export(folder)), DEFAULT)
    folder = bench.convert(model, "weights.group_size=32", "weights.mixed=0.gate_proj=16")
    bench.refuse(folder, ["layers.0.mlp.gate_proj", "16 and 4 bits", "weights.mixed"])


def to_f16(tensors):
    for name, (dtype, shape, data) in tensors.items():
        assert dtype == "F32", name
        values = struct.unpack(f"<{len(data) // 4}f", data)
        tensors[name] = "F16", shape, struct.pack(f"<{len(values)}e", *values)


MIXTURE = {**WIDE, "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 5,
           "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True}


def test_experts(bench):
    """The experts of a layer are one tensor, whatever the format; and weights that are not divided by their sum."""
    model, plain = bench.place("mixture"), bench.place("mixture")
    tiny.make_model(model, **MIXTURE)
    for settings in (["weights.mixed=gate_proj=5,0.up_proj=16,down_proj=6:64"], ["weights.bits=16"], ["head.bits=4"]):
        folder = bench.convert(model, "weights.group_size=32", *settings)
        first = bench.export(folder, "-j1")
        assert first.read_bytes() == bench.export(folder, "-j3").read_bytes(), "not the same bytes twice"
        check_weights(Artifact(folder), gguf_reader.Gguf(first), DEFAULT)
    folder = bench.convert(remake(bench, to_f16, **MIXTURE), "weights.bits=16")
    g = gguf_reader.Gguf(bench.export(folder))
    assert {g.tensors[f"blk.0.{t}.weight"][0] for t in ("attn_q", "ffn_up_exps")} == {"F16"}
    check_weights(Artifact(folder), g, DEFAULT)  # the router is F32 nevertheless
    tiny.make_model(plain, **{**MIXTURE, "norm_topk_prob": False})
    bench.refuse(bench.convert(plain, "weights.bits=16"), ["norm_topk_prob is false", "qwen3_moe"])
    for experts, said in ((512, False), (513, True)):  # llama.cpp's older limit
        model = bench.place("mixture")
        tiny.make_model(model, **{**MIXTURE, "num_experts": experts, "num_hidden_layers": 1, "moe_intermediate_size": 4})
        text = str(notes(bench, bench.convert(model, "weights.bits=16")))
        assert said == (f"{experts} experts of a layer: llama.cpp before" in text), text


def rope_factors(config):
    rope = config.get("rope_parameters") or {**config["rope_scaling"], "rope_theta": config["rope_theta"]}
    d, out = config["head_dim"], []
    for i in range(d // 2):
        wave = 2 * math.pi * rope["rope_theta"] ** (2 * i / d)
        turns = rope["original_max_position_embeddings"] / wave
        low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
        s = min(max((turns - low) / (high - low), 0), 1)
        out.append(1 / ((1 - s) / factor + s))
    return out


def check_family(bench, golden, name, arch, keys):
    config = json.loads((golden / name / "config.json").read_text())
    mixed = ",".join(f"{m}=16" for m in unfit(config))
    folder = bench.convert(golden / name, "weights.group_size=32", *([f"weights.mixed={mixed}"] if mixed else []))
    g = gguf_reader.Gguf(bench.export(folder, "--gguf-pre", "none"))
    check_weights(Artifact(folder), g, DEFAULT)
    assert g.keys["general.architecture"] == arch and g.keys["tokenizer.ggml.model"] == "none", name
    want = {"context_length": config["max_position_embeddings"], **keys}
    assert {k: g.keys.get(f"{arch}.{k}") for k in want} == want, (name, g.keys)
    assert ("rope.scaling.type" in keys) == (f"{arch}.rope.scaling.type" in g.keys), name
    if name.startswith("llama3"):
        have, want = g.floats("rope_freqs.weight"), rope_factors(config)
        assert all(abs(x - y) <= 1e-6 * y for x, y in zip(have, want)) and len(have) == len(want), name
        assert max(have) > min(have) > 1
    else:
        assert "rope_freqs.weight" not in g.tensors
    rope = config.get("rope_scaling") or config.get("rope_parameters")
    for kind in ("short", "long"):
        tensor, factors = f"rope_factors_{kind}.weight", (rope or {}).get(kind + "_factor")
        assert (tensor in g.tensors) == (factors is not None), name
        assert factors is None or list(g.floats(tensor)) == [f32(x) for x in factors], name


def test_families(bench):
    for name, (arch, keys) in GOLDEN.items():
        check_family(bench, bench.golden, name, arch, keys)


def test_gemma3(bench):
    """What llama.cpp has as constants is in these settings; norms have 1 + their weight."""
    model, name = bench.path / "gemma", {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]}
    fits = {**name, "num_hidden_layers": 7, "sliding_window": 20, "query_pre_attn_scalar": 8}
    tiny.make_model(model, rope_scaling={"rope_type": "linear", "factor": 4.0}, **fits)
    (model / "tokenizer.json").unlink()
    check_family(bench, bench.path, "gemma", "gemma3", {"attention.sliding_window": 20, "rope.freq_base": 1e4,
                                                         "rope.scaling.type": "linear", "rope.scaling.factor": 4.0})
    for key, value, words in (("layer_types", ["full_attention"] * 7, "layer 0 is full"),
                              ("rope_local_base_freq", 500.0, "rope_local_base_freq is 500"),
                              ("query_pre_attn_scalar", 16, "query_pre_attn_scalar is 16"),
                              ("sliding_window", None, "sliding_window is missing")):
        other = bench.place("gemma")
        tiny.make_model(other, **{**fits, key: value})
        (other / "tokenizer.json").unlink()
        bench.refuse(bench.convert(other, "weights.bits=16"), [words], "--gguf-pre", "none")
    for dtype, factor in (("float32", None), ("bfloat16", math.sqrt(32))):
        other = bench.place("gemma")
        tiny.make_model(other, torch_dtype=dtype, **fits)
        (other / "tokenizer.json").unlink()
        notes = [n["text"] for n in bench.plan(bench.convert(other, "weights.bits=16"), "--gguf-pre", "none")["notes"]]
        said = [n for n in notes if n.startswith("The factor of the embedding")]
        assert said == [f"The factor of the embedding is {factor:.8g}, because llama.cpp does not round it; the model's is 5.65625"] \
            if factor else not said, notes


# --- the shift of values --------------------------------------------------------------------------------------


def dequantized(a, name, bits, group):
    """Rows of a projection's weight."""
    if bits == 16:
        dtype, shape, data = a.tensors[name + ".weight"]
        w = artifact_reader.floats(dtype, data)
        return [w[r * shape[1]:(r + 1) * shape[1]] for r in range(shape[0])]
    cols = a.config["num_attention_heads"] * a.head_dim
    group = group or cols
    return [[(x - z[c // group]) * h[c // group] for c, x in enumerate(q)]
            for q, z, h in zip(*artifact_reader.read_linear(a.tensors, name, cols, bits, group))]


def check_folded(a, g):
    """bv' = bv - d and bo' = bo + Wo d, d repeated for the query heads of each kv head."""
    per_kv, hd = a.config["num_attention_heads"] // a.config["num_key_value_heads"], a.head_dim
    for layer in range(a.config["num_hidden_layers"]):
        name = f"model.layers.{layer}.self_attn."
        d = artifact_reader.floats(*a.tensors[name + "v_shift"][::2])
        assert any(d)
        repeated = [d[h // per_kv * hd + i] for h in range(a.config["num_attention_heads"]) for i in range(hd)]
        bv, bo = (artifact_reader.floats(*a.tensors[name + p][::2]) if name + p in a.tensors else None
                  for p in ("v_proj.bias", "o_proj.bias"))
        for i, have in enumerate(g.floats(f"blk.{layer}.attn_v.bias")):
            assert abs(have - ((bv[i] if bv else 0) - d[i])) <= 2 ** -23 * abs(have), (layer, i)
        for r, row in enumerate(dequantized(a, name + "o_proj", *a.formats[layer, "o_proj"])):
            terms = [w * x for w, x in zip(row, repeated)] + [bo[r] if bo else 0]
            have = g.floats(f"blk.{layer}.attn_output.bias")[r]
            assert abs(have - sum(terms)) <= 2 ** -22 * sum(map(abs, terms)), (layer, r, have, sum(terms))


def test_fold(bench):
    shifts = [0.01 * (i * i % 17 - 8) for i in range(97)]
    golden = bench.golden
    for source, mixed in ((bench.model, ""), (golden / "llama_bias", "down_proj=16"), (golden / "llama_mlp_bias", "down_proj=16,o_proj=16"),
                          (golden / "mixtral", "down_proj=16"), (golden / "granite", "down_proj=16")):
        folder = bench.convert(source, "weights.group_size=32", *([f"weights.mixed={mixed}"] if mixed else []))
        more = () if source == bench.model else ("--gguf-pre", "none")
        turn = iter(shifts * 100)
        forge.change_tensors(folder, ".v_shift", "<f", lambda _: next(turn))
        bench.refuse(folder, ["the shift of values", "--kv drop"], *more)
        g = gguf_reader.Gguf(bench.export(folder, "--fold", "v-shift", *more))
        check_folded(Artifact(folder), g)
        plain = gguf_reader.Gguf(bench.export(folder, "--kv", "drop", *more))
        assert all(plain.tensors[n] == t for n, t in g.tensors.items() if not n.endswith("attn_v.bias") and
                   not n.endswith("attn_output.bias")), "another tensor has changed"
    forge.change_tensors(folder, ".v_scale", "<f", lambda _: 2.0)
    bench.refuse(folder, ["the smoothing of values;"], "--fold", "v-shift", "--gguf-pre", "none")
    text = bench.run("export", folder, "--format", "awq", "--fold", "v-shift", "-o", bench.place("x"), "-q", want=2).stderr
    assert "--format gguf can" in text, text
    qwen = bench.convert(golden / "qwen2", "weights.bits=16")
    forge.change_tensors(qwen, ".v_shift", "<f", lambda _: 1.0)
    bench.refuse(qwen, ["needs a bias of o_proj", "qwen2"], "--fold", "v-shift", "--gguf-pre", "none")


# --- refusals -------------------------------------------------------------------------------------------------


def qwen3_with_bias(bench, golden):
    """Qwen3 with biases of q, k, v and o, which llama.cpp does not have."""
    model = bench.place("qwen3")
    model.mkdir()
    config = json.loads((golden / "qwen3" / "config.json").read_text())
    d, kv = config["num_attention_heads"] * config["head_dim"], config["num_key_value_heads"] * config["head_dim"]
    named = [(n, *t) for n, t in artifact_reader.read_safetensors(golden / "qwen3" / "model.safetensors").items()]
    for layer in range(config["num_hidden_layers"]):
        for short, n in (("q", d), ("k", kv), ("v", kv), ("o", config["hidden_size"])):
            named.append((f"model.layers.{layer}.self_attn.{short}_proj.bias", "F32", [n], bytes(4 * n)))
    (model / "config.json").write_text(json.dumps({**config, "attention_bias": True}))
    tiny.write_safetensors(model / "model.safetensors", named)
    return model


def every_second(bench, golden):
    """SmolLM3 without a rope in every second layer; llama.cpp leaves it out in every fourth."""
    model = bench.place("second")
    shutil.copytree(golden / "smollm3", model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "no_rope_layers": [1, 0, 1, 0, 1]}))
    return model


def tied_olmo2(bench, golden):
    """OLMo 2 whose head is its embedding, which llama.cpp does not have."""
    model = bench.place("tied")
    shutil.copytree(golden / "olmo2", model)
    config = json.loads((model / "config.json").read_text())
    named = artifact_reader.read_safetensors(golden / "olmo2" / "model.safetensors")
    (model / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    tiny.write_safetensors(model / "model.safetensors", [(n, *t) for n, t in named.items() if n != "lm_head.weight"])
    return model


def test_refusals(bench):
    golden = bench.golden
    bits8 = bench.convert(bench.model, "weights.bits=8", "weights.group_size=32")
    bench.refuse(bits8, ["q_proj", "weights.bits 8", "7 or fewer"])
    bench.refuse(bench.convert(bench.model, "weights.group_size=48"), ["group_size 48", "32, 64, 128 or 0"])
    narrow = bench.place("narrow")
    tiny.make_model(narrow)
    bench.refuse(bench.convert(narrow, "weights.group_size=32"), ["down_proj has 48 columns", "weights.mixed"])
    good = bench.convert(bench.model, "weights.group_size=32")
    bench.refuse(good, ["want one of q4_1, q8_0"], "--weights", "q5_0")
    taken = bench.export(good)
    text = bench.run("export", good, "--format", "gguf", "-o", taken, "-q", want=2).stderr
    assert "exists" in text, text
    text = bench.run("export", good, "--format", "awq", "--weights", "q8_0", "-o", bench.place("x"), "-q", want=2).stderr
    assert "--weights is for --format gguf" in text, text
    bench.refuse(bench.convert(golden / "qwen2", "weights.bits=16"), ["no tokenizer.json"])
    none = ("--gguf-pre", "none")
    bench.refuse(bench.convert(golden / "yarn_attention", "weights.bits=16"), ["truncate is false"], *none)
    bench.refuse(bench.convert(golden / "smollm3_window", "weights.bits=16"), ["attention_bias", "smollm3"], *none)
    bench.refuse(bench.convert(every_second(bench, golden), "weights.bits=16"), ["no_rope_layers", "layer 1"], *none)
    bench.refuse(bench.convert(golden / "olmo2_bias", "weights.bits=16"), ["attention_bias", "olmo2"], *none)
    bench.refuse(bench.convert(tied_olmo2(bench, golden), "weights.bits=16"), ["tie_word_embeddings", "olmo2"], *none)
    bench.refuse(bench.convert(qwen3_with_bias(bench, golden), "weights.bits=16"), ["attention_bias", "qwen3"], *none)


if __name__ == "__main__":
    harness.main(globals(), Bench, arguments=3)
