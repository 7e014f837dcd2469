#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Every family by its commands: test_families.py WKVQ [TEST...].

A tiny model is calibrated, packed, verified, refined and decoded. What a family computes differently must
show: without it, the same weights have another perplexity. tests/golden has logits to check absolute values."""
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "convert"))
import check_artifact as reader
import harness
import tiny

RECIPE = ["calibration.samples=2", "calibration.seqlen=48", "calibration.epochs=1", "crr.blocks=1",
          "weights.group_size=16", "kv.group_size=8"]
REFINE = ["refine.samples=8", "refine.guard=1", "refine.seqlen=48", "refine.batch=4"]


class Fixture(harness.Bench):
    def __init__(self, wkvq, folder):
        super().__init__(wkvq, folder)
        tiny.make_text(self.path / "text.txt", 900)

    def ppl(self, name, *more):
        return json.loads(self.run("eval", name, "--data", "text.txt", "--ctx", "64", "--windows", "6",
                                   "--json", *more).stdout)["ppl"]

    def make(self, name, **settings):
        """Makes a model NAME. A setting None takes the field of tiny.CONFIG away."""
        tiny.make_model(self.path / name, **settings)

    def quantize(self, name, *more):
        """Makes and verifies the artifact NAME.q; returns what `quantize --json` prints."""
        sets = [w for pair in [*RECIPE, *more] for w in ("--set", pair)]
        said = self.run("quantize", name, "--data", "text.txt", "-o", name + ".q", "-j1", "--json", *sets)
        self.run("verify", name + ".q", "--against", name, "--data", "text.txt")
        return json.loads(said.stdout)

    def refine(self, name):
        """Makes and verifies the artifact NAME.r from NAME.q."""
        refined = [w for pair in REFINE for w in ("--set", pair)]
        self.run("refine", name, name + ".q", "--data", "text.txt", "-o", name + ".r", "-j1", *refined)
        self.run("verify", name + ".r", "--against", name, "--data", "text.txt")

    def pass_through(self, name, *more):
        """Returns the perplexities of model NAME, its artifact, and the refined artifact."""
        self.quantize(name, *more)
        self.refine(name)
        self.run("generate", name + ".r", "-p", "a small", "-n", "70", "--temperature", "0")
        full, packed, better = (self.ppl(name + end) for end in ("", ".q", ".r"))
        assert packed < 1.3 * full and better < 1.3 * full, (name, full, packed, better)
        return full

    def pass_pre_rope(self, name):
        """Decoding rotates the dequantized keys of model NAME as the simulation does."""
        self.run("convert", name, "-o", name + ".p", "--set", "kv.group_size=8", "--set", "weights.group_size=16",
                 "--set", "kv.key_stage=pre_rope")
        self.run("verify", name + ".p", "--against", name, "--data", "text.txt")

    def differ(self, name, plain):
        """The same weights without what is special about the family have another perplexity."""
        full, other = self.pass_through(name), self.ppl(plain)
        assert abs(full - other) > 1e-3 * other, f"{name}: perplexity {full}, without its features {other}"


def named(family, **settings):
    return {"model_type": family, "architectures": [family.capitalize() + "ForCausalLM"], **settings}


def test_granite(f):
    factors = {"embedding_multiplier": 6.0, "attention_multiplier": 0.25, "residual_multiplier": 0.4,
               "logits_scaling": 0.5}
    f.make("granite", **named("granite", **factors))
    for key in factors:
        f.make(key, **named("granite", **{**factors, key: 1.0}))
    f.differ("granite", "embedding_multiplier")
    full = f.ppl("granite")
    for key in factors:
        assert abs(f.ppl(key) - full) > 1e-3 * full, key


def test_smollm3(f):
    """Layers without a rope, one of them with a window."""
    f.make("smollm3", **named("smollm3", no_rope_layers=[0, 1, 0]))
    f.make("rope", **named("smollm3", no_rope_layers=[1, 1, 1]))
    f.make("second", **named("smollm3", no_rope_layer_interval=2))
    f.differ("smollm3", "rope")
    full, second = f.ppl("smollm3"), f.ppl("second")
    assert abs(second - full) > 1e-3 * full, (second, full)
    f.make("window", **named("smollm3", no_rope_layer_interval=2, use_sliding_window=True, sliding_window=9))
    f.differ("window", "second")
    f.pass_pre_rope("window")


def test_phi3(f):
    """Fused projections are those of the same rows; some channels of a head have no rope."""
    long = {"rope_type": "longrope", "short_factor": [1.0, 2.0, 3.0], "long_factor": [9.0, 9.0, 9.0]}
    f.make("llama")
    f.make("phi3", **named("phi3"))
    assert f.ppl("phi3") == f.ppl("llama")
    part = named("phi3", partial_rotary_factor=0.75, rope_scaling=long)
    f.make("long", **part, original_max_position_embeddings=128)
    f.make("default", **named("phi3", partial_rotary_factor=0.75))
    f.differ("default", "phi3")
    f.differ("long", "default")
    f.pass_pre_rope("long")
    f.make("tight", **part, original_max_position_embeddings=100)
    full, tight = f.ppl("long"), f.ppl("tight")
    assert abs(tight - full) > 1e-5 * full, "the attention factor follows from the original length"
    f.make("rotated", **part, original_max_position_embeddings=128)
    f.pass_through("rotated", "kv.rotate=kv")


def test_olmo2(f):
    """Calibration, refinement and decoding of norms behind; tests/golden has their logits."""
    f.make("olmo2", **named("olmo2"), rms_norm_eps=1e-5)
    full = f.pass_through("olmo2")
    f.make("other", **named("olmo2"), rms_norm_eps=0.1)
    assert abs(f.ppl("other") - full) > 1e-3 * full, "the norms change nothing"


def test_gemma3(f):
    """Norms around, two ropes, windows in all but some layers. Each setting changes the perplexity."""
    base = {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "sliding_window": 20,
            "sliding_window_pattern": 2, "query_pre_attn_scalar": 16, "rope_local_base_freq": 100.0,
            "rope_scaling": {"rope_type": "linear", "factor": 4.0}}
    f.make("gemma3", **base)
    full = f.pass_through("gemma3")
    f.pass_pre_rope("gemma3")
    for key, value in (("sliding_window", 10), ("sliding_window_pattern", 3), ("query_pre_attn_scalar", 8),
                       ("rope_local_base_freq", 10000.0), ("rope_scaling", None), ("torch_dtype", "bfloat16")):
        f.make(key, **{**base, key: value})
        assert abs(f.ppl(key) - full) > (1e-6 if key == "torch_dtype" else 1e-4) * full, key


def to_bf16(path):
    """Cuts the F32 tensors of a model to BF16."""
    tensors = tiny.model_tensors(json.loads((path / "config.json").read_text()), 1)
    cut = [(name, "BF16", shape, b"".join(data[i + 2:i + 4] for i in range(0, len(data), 4)))
           for name, _, shape, data in tensors]
    tiny.write_safetensors(path / "model.safetensors", cut)


def test_gemma3_dtype(f):
    """The dtype decides the factor of the embedding. If config.json has none, it is that of the weights."""
    base = {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "sliding_window": 20}
    for name, dtype in (("said", "bfloat16"), ("missing", None), ("other", "float32")):
        f.make(name, **base, torch_dtype=dtype)
        to_bf16(f.path / name)
    said, missing, other = (f.ppl(name) for name in ("said", "missing", "other"))
    assert said == missing != other, (said, missing, other)
    f.quantize("missing")
    f.quantize("said")
    assert f.ppl("missing.q") == f.ppl("said.q")
    assert json.loads((f.path / "missing.q" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def pass_experts(f, name):
    """A mixture is calibrated, refined, decoded alone and in chunks, and exported with a module for each expert."""
    said = f.quantize(name)
    f.refine(name)
    full, packed, better = (f.ppl(name + end) for end in ("", ".q", ".r"))
    assert packed < 1.3 * full and better < 1.3 * full, (name, full, packed, better)
    assert abs(f.ppl(name + ".q", "--decode", "--chunk", "8") - f.ppl(name + ".q", "--chunk", "8")) < 1e-3 * packed
    f.run("generate", name + ".q", "-p", "a small", "-n", "70", "--temperature", "0")
    f.run("export", name + ".q", "--format", "dense", "--dtype", "f32", "--kv", "drop", "-o", name + ".d")
    f.run("convert", name + ".d", "-o", name + ".plain", "--set", "weights.bits=16", "--set", "kv.bits=16")
    dense, cache = f.ppl(name + ".d"), f.ppl(name + ".q", "--kv-bits", "16")
    assert abs(dense - cache) < 1e-5 * cache and f.ppl(name + ".plain") == dense, (dense, cache)
    f.run("verify", name + ".plain", "--against", name + ".d", "--data", "text.txt")
    return said


def experts_of(folder, count):
    """Returns {(layer, expert): [bytes of each of its packed tensors]}."""
    found = {}
    for name, (_, _, data) in reader.tensors_of(folder, reader.check_manifest(folder)).items():
        size = len(data) // count
        for e in range(count if ".experts." in name else 0):
            found.setdefault((int(name.split(".")[2]), e), []).append(data[e * size:(e + 1) * size])
    return found


def check_unreached(f, name, said, nearest, count):
    """The experts that calibration says it did not reach, and no others, are rounded to nearest."""
    have, want = experts_of(f.path / (name + ".q"), count), experts_of(f.path / nearest, count)
    unreached = said["unreached_experts"]
    named = {(layer["layer"], e) for layer in unreached for e in layer["experts"]}
    assert named and named == {expert for expert in have if have[expert] == want[expert]}, (name, unreached)
    manifest = json.loads((f.path / (name + ".q") / "manifest.json").read_text())
    assert manifest["provenance"]["calibration"]["unreached_experts"] == unreached


def test_qwen3_moe(f):
    base = {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 12,
            "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
    f.make("moe", **base)
    said = pass_experts(f, "moe")
    f.run("convert", "moe", "-o", "nearest", "--set", "kv.group_size=8", "--set", "weights.group_size=16")
    check_unreached(f, "moe", said, "nearest", 12)
    full = f.ppl("moe")
    for name, setting in (("gptq", "weights.method=gptq"), ("search", "weights.init=search")):
        f.make(name, **base)
        check_unreached(f, name, f.quantize(name, setting), "nearest", 12)
        assert f.ppl(name + ".q") < 1.3 * full, name
    for key, value in (("num_experts_per_tok", 3), ("norm_topk_prob", False)):
        f.make(key, **{**base, key: value})
        assert abs(f.ppl(key) - full) > 1e-4 * full, key


def test_mixtral(f):
    f.make("mixtral", **named("mixtral", num_local_experts=4, num_experts_per_tok=2))
    pass_experts(f, "mixtral")


def test_sliding_window(f):
    """A window inside the text, decoded token by token and in chunks, from a cache of several spans."""
    long = {"num_hidden_layers": 2, "max_position_embeddings": 1400}
    f.make("window", **named("mistral", sliding_window=600, **long))
    f.make("whole", **named("mistral", sliding_window=None, **long))
    f.make("short", **named("mistral", sliding_window=20, **long))
    f.differ("short", "whole")
    f.run("convert", "window", "-o", "window.q", "--set", "kv.group_size=8", "--set", "weights.group_size=16")
    f.run("verify", "window.q", "--against", "window", "--data", "text.txt", "--logit-tokens", "1300", "--ctx", "1200")
    text = ("--ctx", "1200", "--windows", "1")
    for chunk in ("40", "300"):
        have = f.ppl("window.q", *text, "--decode", "--chunk", chunk)
        want, other = (f.ppl(m, *text, "--chunk", chunk) for m in ("window.q", "whole"))
        assert abs(have - want) < 1e-4 * want < abs(other - want), (chunk, have, want, other)


if __name__ == "__main__":
    harness.main(globals(), Fixture, fresh=True)
