#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Checkpoints in unusual spellings, or with redundant data: test_checkpoints.py WKVQ [TEST...].

Each is calibrated, packed and verified by one command, and its perplexity equals that of the plain
spelling of the same model, bit for bit. tests/golden has logits to check absolute values."""
import json
import pathlib
import shutil
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import harness
import tiny

RECIPE = ["calibration.samples=2", "calibration.seqlen=48", "calibration.epochs=1", "crr.blocks=1",
          "weights.group_size=16", "kv.group_size=8"]
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
PHI3 = {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"]}
YARN = {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32}


class Fixture(harness.Bench):
    def __init__(self, wkvq, folder):
        super().__init__(wkvq, folder)
        tiny.make_text(self.path / "text.txt", 900)

    def model(self, name, edit=lambda tensors: tensors, **changes):
        """Makes a tiny model with these settings; edit changes its tensors."""
        tiny.make_model(self.path / name, **changes)
        tensors = tiny.model_tensors({**tiny.CONFIG, **changes}, 1)
        tiny.write_safetensors(self.path / name / "model.safetensors", edit(tensors))

    def ppl(self, name, *more):
        return json.loads(self.run("eval", name, "--data", "text.txt", "--ctx", "64", "--windows", "6",
                                   "--json", *more).stdout)["ppl"]

    def quantize(self, name, *more):
        """Makes the artifact NAME.q of a model, and verifies it."""
        sets = [w for pair in [*RECIPE, *more] for w in ("--set", pair)]
        done = self.run("quantize", name, "--data", "text.txt", "-o", name + ".q", "-j1", *sets)
        self.run("verify", name + ".q", "--against", name, "--data", "text.txt")
        return done.stderr

    def config(self, name):
        return json.loads((self.path / name / "config.json").read_text())

    def names(self, name):
        data = (self.path / name / "model.safetensors").read_bytes()
        (size,) = struct.unpack_from("<Q", data)
        return set(json.loads(data[8:8 + size]))

    def same(self, have, want):
        """Compares both models and both artifacts: perplexity, tensors and configuration."""
        for end in ("", ".q"):
            a, b = self.ppl(have + end), self.ppl(want + end)
            assert a == b, f"{have}{end}: perplexity {a}, {want}{end} has {b}"
        a, b = ((self.path / (n + ".q") / "model.safetensors").read_bytes() for n in (have, want))
        assert a == b, f"{have}.q and {want}.q hold other tensors"
        assert self.config(have + ".q")["tie_word_embeddings"] == \
            self.config(want + ".q")["tie_word_embeddings"], have
        assert self.config(have + ".q")["architectures"] == ["LlamaForCausalLM"], have


def drop(*names):
    return lambda tensors: [t for t in tensors if t[0] not in names]


def renamed(old, new):
    return lambda tensors: [(new if t[0] == old else t[0], *t[1:]) for t in tensors
                            if t[0] != new]


def doubled(tensors):
    """The head is stored, and equals the embedding."""
    embed = next(t for t in tensors if t[0] == EMBED)
    return [(HEAD, *embed[1:]) if t[0] == HEAD else t for t in tensors]


def test_tied_twice(f):
    """tie_word_embeddings, and two tensors that differ: both are used, as transformers does."""
    f.model("untied")
    f.model("twice", tie_word_embeddings=True)
    f.model("tied", drop(HEAD), tie_word_embeddings=True)
    for name in ("untied", "twice", "tied"):
        said = f.quantize(name)
        assert said.count("both are used") == (name == "twice"), said  # once, though calibration and verification open it
    f.same("twice", "untied")
    assert HEAD in f.names("twice.q") and HEAD not in f.names("tied.q")
    assert f.ppl("twice") != f.ppl("tied"), "the head was dropped"
    memory = [json.loads(f.run("inspect", n, "--memory", "--json").stdout)["memory_table"]
              for n in ("twice", "untied")]
    assert memory[0] == memory[1], memory


def test_untied_unsaid(f):
    """Two tensors that differ, of a family that ties them by default, and no tie_word_embeddings: the
    artifact says that they are not tied."""
    smollm3 = {"model_type": "smollm3", "architectures": ["SmolLM3ForCausalLM"]}
    for name in ("said", "missing", "null"):
        f.model(name, **smollm3, tie_word_embeddings=None if name == "null" else False)
    config = f.config("missing")
    del config["tie_word_embeddings"]
    (f.path / "missing" / "config.json").write_text(json.dumps(config))
    for name in ("missing", "null"):
        assert "both are used" in f.quantize(name), name
        assert f.config(name + ".q")["tie_word_embeddings"] is False, name
    f.quantize("said")
    for end in ("", ".q"):
        assert f.ppl("missing" + end) == f.ppl("null" + end) == f.ppl("said" + end), end


def test_one_of_two(f):
    """A tied pair that is stored once, under either name, or twice with the same bytes."""
    f.model("plain", drop(HEAD), tie_word_embeddings=True)
    f.model("head", lambda t: renamed(EMBED, HEAD)(drop(HEAD)(t)), tie_word_embeddings=True)
    f.model("double", doubled, tie_word_embeddings=True)
    f.model("unsaid", drop(HEAD), tie_word_embeddings=False)
    for name in ("plain", "head", "double", "unsaid"):
        f.quantize(name)
    for name in ("head", "double", "unsaid"):
        f.same(name, "plain")


def test_base_model(f):
    """Names without "model.", as LlamaModel.save_pretrained writes them."""
    f.model("plain", drop(HEAD), tie_word_embeddings=True)
    f.model("base", lambda t: [(n.removeprefix("model."), *rest) for n, *rest in drop(HEAD)(t)],
            tie_word_embeddings=True, architectures=["LlamaModel"])
    for name in ("plain", "base"):
        f.quantize(name)
    f.same("base", "plain")


def shard(folder, tensors, end, begin, where):
    """Puts tensors[:end] and tensors[begin:] in place of the single file of the model in folder."""
    (folder / "model.safetensors").unlink()
    tiny.write_safetensors(folder / "a.safetensors", tensors[:end])
    tiny.write_safetensors(folder / "b.safetensors", tensors[begin:])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


def test_index(f):
    """An index that disagrees with the shards, and shards that share a tensor."""
    f.model("plain", drop(HEAD), tie_word_embeddings=True)
    f.model("shards", drop(HEAD), tie_word_embeddings=True)
    tensors = drop(HEAD)(tiny.model_tensors(tiny.CONFIG, 1))
    where = {t[0]: "a.safetensors" for t in tensors[:5]}
    folder = shard(f.path / "shards", tensors, 12, 9, where | {tensors[7][0]: "b.safetensors", HEAD: "b.safetensors"})
    for name in ("plain", "shards"):
        said = f.quantize(name)
    assert "3 tensors are in two files, with the same bytes" in said, said
    assert "1 tensors are in other files than weight_map says" in said, said
    f.same("shards", "plain")
    shutil.copy(f.path / "plain" / "model.safetensors", folder)
    (folder / "a.safetensors").unlink()  # the single file comes first, and alone
    assert f.ppl("shards") == f.ppl("plain")


def test_mlp_bias(f):
    f.model("bias", mlp_bias=True)
    f.model("plain")
    f.quantize("bias", "kv.rotate=kv", "weights.method=gptq")
    assert "model.layers.1.mlp.down_proj.bias" in f.names("bias.q")
    assert f.ppl("bias") != f.ppl("plain")
    f.run("generate", "bias.q", "-p", "the", "-n", "4")


def test_inspected(f):
    """What is in the file, and what fused tensors and experts become."""
    experts = {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 4,
               "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True}
    for name, changes, read, part, shape, line in (
            ("plain", {}, 30, "mlp.up_proj", [48, 32], "30 tensors\n"),
            ("fused", PHI3, 30, "self_attn.v_proj", [16, 32], "21 tensors\n"),
            ("experts", experts, 39, "mlp.experts.up_proj", [64, 32], "66 tensors\n")):
        f.model(name, **changes)
        stored = f.names(name) - {"__metadata__"}
        o = json.loads(f.run("inspect", name, "--json", "--tensors").stdout)
        seen = o.get("tensors_read", o["tensors"])
        assert set(o["tensors"]) == stored and o["tensors_count"] == len(stored), o
        assert o["tensors_count_read"] == len(seen) == read, o
        assert seen[f"model.layers.2.{part}.weight"]["shape"] == shape, seen
        assert sum(t["bytes"] for t in seen.values()) == sum(t["bytes"] for t in o["tensors"].values()), o
        text = f.run("inspect", name, "--tensors").stdout
        assert line in text and (f"read as    {read} tensors" in text) == (name != "plain"), text
        assert text.count(f" model.layers.2.{part}.weight ") == 1, text


def test_shared_tensors_inspected(f):
    """Fused tensors in two files, two of them in both, are those of a single file."""
    def contents(name):
        o = json.loads(f.run("inspect", name, "--json", "--tensors").stdout)
        return {key: value for key, value in o.items() if key.startswith("tensors") or key == "weights"}

    f.model("single", **PHI3)
    f.model("shards", **PHI3)
    tensors = tiny.model_tensors({**tiny.CONFIG, **PHI3}, 1)
    shard(f.path / "shards", tensors, 12, 10, {tensors[0][0]: "a.safetensors", tensors[-1][0]: "b.safetensors"})
    assert contents("shards") == contents("single")
    assert contents("single")["tensors_count"] == len(tensors) == 21
    assert f.run("inspect", "shards", "--tensors").stdout.count(f" {tensors[11][0]} ") == 1


def test_rope(f):
    """The kinds of rotary embedding, with keys quantized before it and after it."""
    f.model("plain")
    f.model("dynamic", rope_scaling={"type": "dynamic", "factor": 2.0})
    f.model("yarn", rope_scaling=YARN)
    new = {"rope_type": "yarn", "rope_theta": 10000.0, **{k: v for k, v in YARN.items() if k != "type"}}
    f.model("newer", rope_parameters=new)
    for name in ("plain", "dynamic", "yarn", "newer"):
        f.quantize(name)
    f.same("dynamic", "plain")
    f.same("newer", "yarn")
    assert f.config("yarn.q")["rope_scaling"] == YARN
    assert f.ppl("yarn") != f.ppl("plain")
    shown = json.loads(f.run("inspect", "yarn.q", "--json").stdout)["model"]["rope"]
    assert shown["rope_type"] == "yarn" and abs(shown["attention_factor"] - 1.2079441541) < 1e-6, shown
    assert "yarn, factor 8, cos and sin times 1.208, from 32 positions to 256" in \
        f.run("inspect", "yarn").stdout
    shutil.rmtree(f.path / "yarn.q")
    f.quantize("yarn", "kv.key_stage=pre_rope", "kv.past_only=false")


if __name__ == "__main__":
    harness.main(globals(), Fixture, fresh=True)
