#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The cache of another engine as the target (kv.target): test_target.py WKVQ.

The settings that follow from it, what simulates it, the same weights with and without a state, what the
packed runtime and the exports say, and what is refused."""
import json
import pathlib
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import gguf_reader
import harness
import tiny

MODEL = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 1,
         "head_dim": 64, "num_hidden_layers": 2}
TARGETS = {"llama.cpp-q4_0": "q4_0", "llama.cpp-q4_1": "q4_1"}
LENGTH = 160  # more than transformers keeps in full precision
SMALL = ["calibration.samples=3", f"calibration.seqlen={LENGTH}", "calibration.epochs=1", "crr.blocks=0",
         "weights.group_size=32", "weights.scale_bits=7", "run.compute=f32"]
REFINE = ["refine.samples=4", f"refine.seqlen={LENGTH}", "refine.guard=2"]


class Bench(harness.Bench):
    def __init__(self, wkvq, folder):
        super().__init__(wkvq, folder)
        self.folds = {}
        tiny.make_model(self.path / "m", **MODEL)
        tiny.make_text(self.path / "t.txt")
        self.run("convert", "m", "-o", "untargeted", "-q", *sets("weights.group_size=32"))

    def said(self, *args, want=0):
        """Runs wkvq, and returns all that it printed."""
        done = self.run(*args, want=want)
        return done.stdout + done.stderr

    def rounded(self, target):
        """Makes the artifact of a target by rounding to nearest, unless it is there. Returns its name."""
        artifact = f"{target}-rtn"
        if not (self.path / artifact).exists():
            self.run("convert", "m", "-o", artifact, "-q", *sets(f"kv.target={target}", "weights.group_size=32"))
        return artifact

    def calibrated(self, target):
        """Makes the state TARGET.state, calibrated and refined, and its artifact, unless it is there. Returns its name."""
        artifact = f"{target}-calibrated"
        if not (self.path / artifact).exists():
            args = ["--data", "t.txt", *sets(*SMALL, *REFINE, f"kv.target={target}", "kv.learn=true")]
            self.run("calibrate", "m", *args, "-o", f"{target}.state", "-q")
            self.run("convert", "m", "--state", f"{target}.state", "-o", artifact, "-q")
        return artifact

    def model(self, name):
        """Makes one of the models of FOLDED, unless it is there."""
        if not (self.path / name).exists():
            tiny.make_model(self.path / name, **FOLDED[name])
        return name

    def folded(self, model, target):
        """Makes the state MODEL-TARGET.fold and its fold, unless it is there. Returns its name, and what was said."""
        state, folded = f"{self.model(model)}-{target}.fold", f"{model}-{target}-folded"
        if folded not in self.folds:
            self.run("calibrate", model, "--data", "t.txt", *sets(*FOLD, f"kv.target={target}"), "-o", state, "-q")
            self.folds[folded] = json.loads(self.said("fold", model, "--state", state, "-o", folded, "--json", "-q"))
        return folded, self.folds[folded]

    def nll(self, *args):
        """Loss and report of `wkvq eval` on four windows, in f32."""
        text = self.said("eval", *args, "--data", "t.txt", "--ctx", LENGTH, "--windows", 4, "--json", "-q",
                         "--set", "run.compute=f32")
        done = json.loads(text)
        return done["nll"], done


def sets(*pairs):
    return [word for pair in pairs for word in ("--set", pair)]


def kv_of(b, artifact):
    config = json.loads((b.path / artifact / "config.json").read_text())
    return config["quantization_config"]


# What kv.target decides in an artifact, its format version, and bits per element.
LLAMA_CPP = {"method": "token", "bits": 4, "group_size": 32, "key_stage": "post_rope", "past_only": False, "window": 1,
             "sink": 0}
SETTINGS = {"llama.cpp-q4_0": (7, LLAMA_CPP, 4.5), "llama.cpp-q4_1": (7, LLAMA_CPP, 5),
            "fp8": (9, {**LLAMA_CPP, "bits": 8, "group_size": 512}, 8),
            "transformers-quanto4": (9, {**LLAMA_CPP, "group_size": 64, "past_only": True}, 4.5),
            "vllm-int4": (9, {**LLAMA_CPP, "group_size": 512}, 4.5)}
# Formats that carry the target, and a part of what the export says.
ENGINES = {"transformers-quanto4": (("compressed-tensors", "dense"), 'cache_implementation="quantized"'),
           "vllm-int4": (("compressed-tensors", "awq", "dense"), "--kv-cache-dtype int4_per_token_head")}


def check_settings(b, artifact, target):
    q = kv_of(b, artifact)
    version, settings, bits = SETTINGS[target]
    want = {**settings, "target": target}
    assert q["format_version"] == version and {key: q["kv"][key] for key in want} == want, q
    text = b.said("inspect", artifact)
    assert f"that of {target}, simulated" in text, text
    assert f"{bits:.4f} bits per element" in text, text


def check_simulation(b, artifact, target):
    """The artifact's cache is simulated, as --simulate rtn does for its checkpoint. Another artifact can be
    evaluated in it, and it differs from the full-precision cache and from another engine's."""
    own, report = b.nll(artifact)
    assert report["kv_target"] == target and report["method"] == "simulation", report
    rtn, _ = b.nll("m", "--simulate", "rtn", *sets(f"kv.target={target}", "weights.group_size=32"))
    assert abs(own - rtn) <= 1e-6, (own, rtn)
    plain, report = b.nll(artifact, "--kv-bits", 16)
    assert "kv_target" not in report and plain != own, report
    assert abs(plain - own) < 0.3, (plain, own)
    other = next(t for t in SETTINGS if t != target)
    assert b.nll(artifact, "--set", f"kv.target={other}")[0] not in (own, plain)
    elsewhere, report = b.nll("untargeted", "--set", f"kv.target={target}")
    assert elsewhere == own and abs(report["kv_bits"] - SETTINGS[target][2]) < 1e-9, report


def check_runtime(b, artifact, target):
    """Weights and logits are verified with a cache in full precision, and the report says so."""
    text = b.said("verify", artifact, "--against", "m", "--data", "t.txt", "--logit-tokens", 24, "--ctx", 24)
    assert f"simulates the cache of {target}, but has none" in text and "verdict     passed" in text, text
    text = b.said("generate", artifact, "-p", "the", "-n", 2, want=2)
    assert "--kv-bits 16" in text and target in text, text
    b.run("generate", artifact, "-p", "the", "-n", 2, "--kv-bits", 16)


def check_export(b, artifact, target):
    kind = TARGETS[target]
    out = f"{artifact}.gguf"
    text = b.said("export", artifact, "--format", "gguf", "--gguf-pre", "none", "-o", out)
    assert f"serve with -fa on -ctk {kind} -ctv {kind}" in text, text
    keys = gguf_reader.Gguf(b.path / out).keys
    assert keys["wkvq.kv_target"] == target, keys
    for form in ("dense", "compressed-tensors", "awq"):
        text = b.said("export", artifact, "--format", form, "-o", "refused", want=2)
        assert f"kv.target is {target}" in text and "--kv drop" in text, text
        assert not (b.path / "refused").exists()
        b.run("export", artifact, "--format", form, "--kv", "drop", "-o", f"{artifact}-{form}")
        card = (b.path / f"{artifact}-{form}" / "README.md").read_text()
        assert f"The target of the cache's calibration, {target}" in card, card


def tensors(path):
    """Offsets and shapes of a file's tensors, and its data."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def floats(path, name):
    header, data = tensors(path)
    begin, end = header[name]["data_offsets"]
    assert header[name]["dtype"] == "F32", header[name]
    return struct.unpack(f"<{(end - begin) // 4}f", data[begin:end])


def test_scales(b):
    """The artifact has one scale for a layer's keys and one for its values, and compressed-tensors carries them.
    Without calibration the scale is 1, as in an engine that finds none in a checkpoint."""
    b.rounded("fp8")
    b.calibrated("fp8")

    def scales(artifact, layer, side):
        return floats(b.path / artifact / "model.safetensors", f"model.layers.{layer}.self_attn.{side}_scale")
    text = b.said("export", "fp8-calibrated", "--format", "compressed-tensors", "-o", "fp8-ct")
    assert "serve with --kv-cache-dtype fp8" in text, text
    assert "serve with --kv-cache-dtype fp8" in (b.path / "fp8-ct" / "README.md").read_text()
    scheme = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False}
    assert kv_of(b, "fp8-ct")["kv_cache_scheme"] == scheme
    seen = set()
    for layer in range(2):
        for side in "kv":
            own = scales("fp8-calibrated", layer, side)
            assert set(own) == {own[0]} and 0 < own[0] < 1, own
            assert scales("fp8-ct", layer, side) == own[:1], own
            assert set(scales("fp8-rtn", layer, side)) == {1.0}
            seen.add(own[0])
    assert len(seen) == 4, seen
    plain = b.said("export", "fp8-rtn", "--format", "compressed-tensors", "-o", "fp8-plain")
    assert "these scales are 1" in plain and "these scales are 1" not in text, (plain, text)
    b.run("export", "fp8-calibrated", "--format", "compressed-tensors", "--kv", "drop", "-o", "fp8-dropped")
    assert kv_of(b, "fp8-dropped")["kv_cache_scheme"] is None
    header, _ = tensors(b.path / "fp8-dropped" / "model.safetensors")
    assert not any("k_scale" in name or "v_scale" in name for name in header), header
    for form in ("dense", "awq", "gguf"):
        text = b.said("export", "fp8-calibrated", "--format", form, "-o", "refused", want=2)
        assert "kv.target is fp8" in text and "--format compressed-tensors, or --kv drop" in text, text
        assert not (b.path / "refused").exists()
    b.run("export", "fp8-calibrated", "--format", "gguf", "--gguf-pre", "none", "--kv", "drop", "-o", "fp8.gguf")
    assert "wkvq.kv_target" not in gguf_reader.Gguf(b.path / "fp8.gguf").keys


def test_engines(b):
    """The formats that carry a target say how to serve it; the others refuse it."""
    for target, (formats, words) in ENGINES.items():
        b.rounded(target)
        for form in ("compressed-tensors", "awq", "dense", "gguf"):
            out = f"{target}-{form}"
            if form in formats:
                text = b.said("export", f"{target}-rtn", "--format", form, "-o", out)
                assert words in text and words in (b.path / out / "README.md").read_text(), text
                scheme = json.loads((b.path / out / "config.json").read_text()).get("quantization_config", {})
                assert scheme.get("kv_cache_scheme") is None, scheme
            else:
                text = b.said("export", f"{target}-rtn", "--format", form, "-o", "refused", want=2)
                assert f"kv.target is {target}, which is no cache of --format {form}" in text, text
                assert not (b.path / "refused").exists()


def test_residual(b):
    """transformers keeps 128 tokens in full precision, and quantizes them together: up to there it changes nothing."""
    def nll(ctx, *options):
        text = b.said("eval", "untargeted", "--data", "t.txt", "--ctx", ctx, "--windows", 2, "--json", "-q",
                      "--set", "run.compute=f32", *options)
        said, _, warned = text.partition("\n")
        assert ("nothing of it is quantized" in warned) == (ctx < 130 and quanto == [*options]), warned
        assert warned.count("nothing of it is quantized") <= 1, warned
        return json.loads(said)["nll"]
    quanto = sets("kv.target=transformers-quanto4")
    for ctx in (128, 129):
        assert nll(ctx, *quanto) == nll(ctx, "--kv-bits", 16)
    assert nll(130, *quanto) != nll(130, "--kv-bits", 16)


def check_calibrated(b, target):
    b.calibrated(target)
    check_settings(b, f"{target}-calibrated", target)
    state, _ = b.nll("m", "--state", f"{target}.state")
    artifact, report = b.nll(f"{target}-calibrated")
    assert report["kv_target"] == target and abs(state - artifact) <= 1e-5, (state, artifact)
    text = b.said("verify", f"{target}-calibrated", "--against", "m", "--state", f"{target}.state", "--data",
                  "t.txt", "--logit-tokens", 24, "--ctx", 24)
    assert "verdict     passed" in text, text


def test_mixture(b):
    """A mixture of experts is calibrated for llama.cpp's cache and for FP8, and exported with it."""
    config = {**MODEL, "num_experts_per_tok": 2, "max_position_embeddings": 256}
    tiny.make_model(b.path / "mixture", seed=4, **config, num_local_experts=3, model_type="mixtral",
                    architectures=["MixtralForCausalLM"])
    args = ["--data", "t.txt", *sets(*SMALL, "refine.samples=0", "kv.target=llama.cpp-q4_0")]
    b.run("calibrate", "mixture", *args, "-o", "mixture.state", "-q")
    b.run("convert", "mixture", "--state", "mixture.state", "-o", "mixture-q", "-q")
    check_settings(b, "mixture-q", "llama.cpp-q4_0")
    assert abs(b.nll("mixture", "--state", "mixture.state")[0] - b.nll("mixture-q")[0]) <= 1e-5
    text = b.said("export", "mixture-q", "--format", "gguf", "-o", "mixture.gguf")
    assert "llama.cpp's cache of type q4_0" in text, text
    warning = "calibrates for `wkvq fold`, which writes no checkpoint of a mixture of experts"
    for model, bits, want in (("mixture", 16, True), ("mixture", 4, False), ("m", 16, False)):
        settings = sets(*SMALL, f"weights.bits={bits}", "kv.target=llama.cpp-q4_0")
        said = b.said("calibrate", model, "--data", "t.txt", *settings, "-o", "none", "--plan")
        assert (warning in said) == want, (model, bits, said)
    fp8 = sets(*SMALL, "refine.samples=0", "kv.target=fp8", "weights.group_size=32")
    b.run("quantize", "mixture", "--data", "t.txt", *fp8, "-o", "mixture-fp8", "-q")
    b.run("export", "mixture-fp8", "--format", "compressed-tensors", "-o", "mixture-ct")
    assert kv_of(b, "mixture-ct")["kv_cache_scheme"]["type"] == "float"
    names = tensor_names(b.path / "mixture-ct")
    assert {f"model.layers.{i}.self_attn.{side}_scale" for i in range(2) for side in "kv"} <= names, names


FOLD = ["weights.bits=16", "calibration.samples=3", "calibration.seqlen=24", "calibration.epochs=2", "crr.blocks=0",
        "kv.init=search", "optimizer.lr_smooth=0.05", "optimizer.lr_shift=0.05", "run.compute=f32"]


# Models beside "m": without biases, and of a family that fuses projections.
FOLDED = {"q": {"seed": 2, **MODEL, "model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None},
          "fused": {"seed": 3, **MODEL, "hidden_size": 128, "model_type": "phi3", "architectures": ["Phi3ForCausalLM"],
                    "auto_map": {"AutoConfig": "own.Config"}}}


def tensor_names(path):
    return set(tensors(path / "model.safetensors")[0]) - {"__metadata__"}


def check_fold(b, model, target, biases):
    """A fold computes the same in full precision. In the engine's cache it has the loss of the smoothing and
    shift that the state learned, which is another one than without them. It is quantized like any checkpoint."""
    folded, done = b.folded(model, target)
    state, only = f"{model}-{target}.fold", sets("weights.bits=16", f"kv.target={target}")
    assert done["biases"] == biases, done
    names, before = tensor_names(b.path / folded), tensor_names(b.path / model)
    added = {f"model.layers.{i}.self_attn.{x}_proj.bias" for i in range(2) for x in "qkvo"}
    assert names == before | (added if biases else set()), names ^ before
    assert "auto_map" not in json.loads((b.path / folded / "config.json").read_text())
    own, _ = b.nll(model)
    same, _ = b.nll(folded)
    assert abs(own - same) <= 1e-5, (own, same)  # f32, products rounded once
    learned, _ = b.nll(model, "--state", state)
    assert b.nll(model, "--state", state, "--set", f"kv.target={target}")[0] == learned
    cached, _ = b.nll(folded, "--simulate", "rtn", *only)
    unfolded, _ = b.nll(model, "--simulate", "rtn", *only)
    # A few codes at a tie differ, as R v is summed in another order.
    assert abs(learned - cached) <= 2e-3 < abs(unfolded - learned), (learned, cached, unfolded)
    artifact = f"{folded}-rtn"
    b.run("convert", folded, "-o", artifact, "-q", *sets(f"kv.target={target}", "weights.group_size=32"))
    text = b.said("verify", artifact, "--against", folded, "--data", "t.txt", "--logit-tokens", 24, "--ctx", 24)
    assert "verdict     passed" in text, text
    b.run("export", artifact, "--format", "gguf", "--gguf-pre", "none", "-o", f"{artifact}.gguf")


def named_bytes(folder):
    """The bytes, type and shape of every tensor of a checkpoint, and the file that has it."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        header, data = tensors(path)
        for name, t in header.items():
            if name != "__metadata__":
                assert name not in found, name
                begin, end = t["data_offsets"]
                found[name] = data[begin:end], t["dtype"], t["shape"], path.name
    return found


def check_sharded(b, model, target):
    """Files of a bounded size hold the same tensors as one file, and are read again."""
    folded, shards = b.folded(model, target)[0], f"{model}-{target}-shards"
    done = json.loads(b.said("fold", model, "--state", f"{model}-{target}.fold", "-o", shards, "--shard", "100K",
                             "--json", "-q"))
    files = {f.name: f.stat().st_size for f in (b.path / shards).glob("*.safetensors")}
    assert len(files) > 2 and sum(files.values()) == done["bytes"], (files, done)
    whole, parts = named_bytes(b.path / folded), named_bytes(b.path / shards)
    assert {n: t[:3] for n, t in whole.items()} == {n: t[:3] for n, t in parts.items()}
    index = json.loads((b.path / shards / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {n: t[3] for n, t in parts.items()}
    assert index["metadata"]["total_size"] == sum(len(t[0]) for t in parts.values())
    own = [[len(t[0]) for t in parts.values() if t[3] == name] for name in sorted(files)]
    for sizes, after in zip(own, own[1:] + [[]]):
        assert sum(sizes) <= 100 << 10 or len(sizes) == 1, own
        assert not after or sum(sizes) + after[0] > 100 << 10, own
    assert list(whole) == list(parts), "in another order"
    assert b.nll(shards)[0] == b.nll(folded)[0]


def test_refused(b):
    """What is no fold, and what a fold is not."""
    state, target = "m-llama.cpp-q4_0.fold", "llama.cpp-q4_0"
    b.folded("m", target)
    b.calibrated(target)
    b.model("q")
    for args, words in ((["fold", "m", "--state", f"{target}.state", "-o", "refused"], "holds nothing to fold"),
                        (["fold", "m", "-o", "refused"], "give --state STATE"),
                        (["fold", "m", "--state", state], "give -o OUT"),
                        (["fold", "m", "--state", state, "-o", "untargeted"], "untargeted: "),
                        (["fold", "q", "--state", state, "-o", "refused"], "checkpoint"),
                        (["convert", "m", "--state", state, "-o", "refused"], "then `wkvq fold`"),
                        (["calibrate", "m", "--data", "t.txt", "-o", "refused", *sets(*FOLD, *REFINE, f"kv.target={target}")],
                         "nothing to refine")):
        text = b.said(*args, want=2)
        assert words in text, (args, text)
        assert not (b.path / "refused").exists(), args


def test_rounded_to_nearest(b):
    for target in SETTINGS:
        artifact = b.rounded(target)
        check_settings(b, artifact, target)
        check_simulation(b, artifact, target)
        check_runtime(b, artifact, target)


def test_calibrated(b):
    for target in SETTINGS:
        check_calibrated(b, target)


def test_export(b):
    for target in TARGETS:
        check_export(b, b.rounded(target), target)


def test_fold(b):
    for target in TARGETS:
        check_fold(b, "m", target, biases=True)
    for model in "q", "fused":
        check_fold(b, model, "llama.cpp-q4_0", biases=False)


def test_sharded(b):
    for model in "m", "fused":
        check_sharded(b, model, "llama.cpp-q4_0")


if __name__ == "__main__":
    harness.main(globals(), Bench)
