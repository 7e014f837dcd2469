#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Weights that other tools packed (--weights-from): test_import.py WKVQ.

foreign.py packs random codes, zero points and scales; the artifact must hold exactly these, read by
tests/convert/check_artifact.py. All other tensors keep their bytes. Calibration and refinement must change
only what they may, and an export to the same format must return the tool's own tensors."""
import json
import pathlib
import re
import shlex
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "convert")]
import check_artifact as reader
import foreign
import harness
import tiny

TRAIN = ["--data", "t.txt", "--set", "calibration.samples=4", "--set", "calibration.seqlen=64", "--set",
         "calibration.epochs=2", "--set", "crr.blocks=1"]
REFINE = ["--set", "refine.samples=4", "--set", "refine.seqlen=64", "--set", "refine.guard=2"]


class Bench(harness.Bench):
    def __init__(self, wkvq, folder):
        super().__init__(wkvq, folder)
        self.count = 0
        tiny.make_text(self.path / "t.txt")

    def place(self, name):
        self.count += 1
        return self.path / f"{self.count}-{name}"

    def make(self, **what):
        path = self.place("foreign")
        return path, foreign.make(path, **what)

    def convert(self, path, *more):
        out = self.place("artifact")
        said = self.run("convert", path, "--weights-from", path, "-o", out, *more).stderr
        return out, said


def tensors(folder):
    return reader.tensors_of(folder, reader.check_manifest(folder))


def codes(folder):
    """{projection: (q, z, h)} of an artifact."""
    have, out = tensors(folder), {}
    config = json.loads((folder / "config.json").read_text())
    spec = config["quantization_config"]["weights"]
    kinds = [m.split(".")[1] for m in foreign.LINEARS]
    for (layer, kind), (bits, group) in reader.formats(spec, kinds, config["num_hidden_layers"]).items():
        name = f"model.layers.{layer}.{foreign.LINEARS[kinds.index(kind)]}"
        if bits < 16:
            cols = {"o_proj": 96, "down_proj": 160}.get(kind, 96)
            out[name] = tuple(reader.read_linear(have, name, cols, bits, group or cols))
    return out


def check_codes(folder, linears, order=None):
    have = codes(folder)
    assert have.keys() == linears.keys(), (have.keys(), linears.keys())
    for name, x in linears.items():
        applies = order and x.groups == len(order)
        q, z, h = x.expected(order if applies else None)
        assert have[name][0] == q, f"{name}: codes differ"
        assert have[name][1] == z, f"{name}: zero points differ"
        assert have[name][2] == h, f"{name}: scales differ"


GPTQ, AWQ = {"form": "gptq"}, {"form": "awq"}
VARIANTS = [
    AWQ,
    {**AWQ, "group": 0, "dtype": "BF16"},
    {**AWQ, "symmetric": True, "negative": True, "auto_round": "auto_round:auto_awq"},
    {**AWQ, "group": 16, "keep": ["model.layers.0.mlp.up_proj", "model.layers.0.mlp.gate_proj"]},
    GPTQ,
    {**GPTQ, "no_g_idx": True, "group": 0},
    {**GPTQ, "version": 1, "symmetric": True},
    {**GPTQ, "version": 1, "symmetric": True, "negative": True, "no_g_idx": True, "auto_round": "auto_round:auto_gptq"},
    {**GPTQ, "auto_round": "auto_round"},
    {**GPTQ, "version": 1, "lowest": 1},
    {**GPTQ, "version": 1, "words_minus": True},
    {**GPTQ, "version": 1, "words_minus": True, "bits": 8, "dtype": "BF16"},
    {**GPTQ, "mixed": {"mlp.down_proj": (8, 80), "self_attn.k_proj": (8, 0)}, "keep": ["model.layers.1.mlp.up_proj"]},
    {},
    {"symmetric": True},
    {"symmetric": True, "negative": True},
    {"group": 0},
    {"group": 0, "symmetric": True, "dtype": "BF16"},
    {"dtype": "BF16"},
    {"bits": 8, "group": 16},
    {"bits": 2},
    {"signed_zeros": True},
    {"cache_scales": True},
    {"mixed": {"mlp.up_proj": (8, 32), "mlp.gate_proj": (8, 32), "self_attn.v_proj": (4, 0)},
     "keep": ["model.layers.0.mlp.down_proj", "model.layers.1.self_attn.o_proj"]},
]


def test_inspect(b):
    """Bits, groups, bytes and what is not packed, counted from the files."""
    for what in VARIANTS:
        path, linears = b.make(**what)
        said = json.loads(b.run("inspect", path, "--json").stdout)
        q, arch = said["quantization"], said["model"]
        have = {name: size for name, size in stored_bytes(path) if name.rsplit(".", 1)[0] in linears}
        weights = sum(x.rows * x.cols for x in linears.values())
        assert said["kind"] == "checkpoint" and q["projections"] == len(linears), (what, said)
        assert said["quantized_weights"] == weights and said["quantized_bytes"] == sum(have.values()), (what, said)
        assert abs(said["weight_bits"] - 8 * sum(have.values()) / weights) < 1e-6, (what, said)
        assert q["bits"] == what.get("bits", 4) and q["group_size"] == what.get("group", 32), (what, q)
        assert q["symmetric"] == what.get("symmetric", False), (what, q)
        full = len(foreign.LINEARS) * arch["layers"] - len(linears)
        assert len(q["unquantized"].split(", ")) * bool(q["unquantized"]) == full == len(what.get("keep", ())), (what, q)


def stored_bytes(path):
    """(name, bytes) of a checkpoint's tensors."""
    with open(path / "model.safetensors", "rb") as f:
        header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
    return [(n, t["data_offsets"][1] - t["data_offsets"][0]) for n, t in header.items() if n != "__metadata__"]


def test_codes(b):
    """Every code, zero point and scale of an artifact is the tool's, and verify finds no difference."""
    for what in VARIANTS:
        path, linears = b.make(**what)
        out, said = b.convert(path)
        check_codes(out, linears)
        b.run("verify", out, "--against", path)
        negative = sum(x < 0 for l in linears.values() for x in sum(l.h, []))
        assert ("negative scale" in said) == (negative > 0), said
        assert "rounded" not in said, said
        source = reader.read_safetensors(path / "model.safetensors")
        for name, t in tensors(out).items():
            if name in source and not name.endswith(("k_scale", "v_scale")) and name.rpartition(".")[0] not in linears:
                assert t == source[name], f"{name} was not copied"


def test_members(b):
    """What changes nothing while an engine runs is read; an unknown member is read with a warning."""
    merged = {"config_groups": {"R1": {"type": "hadamard", "apply": [
        {"targets": ["embed_tokens"], "location": "weight_output"},
        {"targets": ["q_proj"], "location": "weight_input", "inverse": True}]}}}
    rest = {"sparsity_config": {"format": "dense"}, "rotation_config": {}, "adapter": None, "rotation": None}
    for form, more in (("compressed", {"transform_config": merged}), ("compressed", {"transform_config": {}}),
                       ("compressed", {"transform_config": None}), ("gptq", {"spinquant_config": {}}), ("awq", {}),
                       ("gptq", {"data_type": "int_sym", "extra_config": {"lm_head": {"bits": 16, "data_type": "int"}}})):
        for unknown in (False, True):
            path, linears = b.make(form=form)
            config = json.loads((path / "config.json").read_text())
            config["quantization_config"].update(rest, **more, **({"twist": {"angle": 3}} if unknown else {"twist": {}}))
            (path / "config.json").write_text(json.dumps(config))
            out, said = b.convert(path)
            check_codes(out, linears)
            assert ('"twist" is not known here and is ignored' in said) == unknown, said
            assert said.count("is not known here") == unknown, said


class Part:
    """Rows of a fused projection."""

    def __init__(self, whole, begin, rows):
        self.whole, self.begin, self.end, self.groups = whole, begin, begin + rows, whole.groups

    def expected(self, order=None):
        return tuple(x[self.begin:self.end] for x in self.whole.expected(order))


def parts(linears):
    """Fused projections as the ones that their rows are: 96, 32 and 32 for q, k and v, 160 for gate and up."""
    out = {}
    for name, x in linears.items():
        base, fused = name.rpartition(".")[0], name.rpartition(".")[2]
        rows = {"qkv_proj": {"q_proj": 96, "k_proj": 32, "v_proj": 32}, "gate_up_proj": {"gate_proj": 160, "up_proj": 160}}
        begin = 0
        for kind, n in rows.get(fused, {}).items():
            out[f"{base}.{kind}"] = Part(x, begin, n)
            begin += n
        if not begin:
            out[name] = x
    return out


FUSED_VARIANTS = [
    {},
    {"bits": 8, "symmetric": True, "negative": True},
    {"keep": ["model.layers.0.self_attn.qkv_proj"], "mixed": {"mlp.gate_up_proj": (8, 0)}},
    {**AWQ, "keep": ["model.layers.1.mlp.gate_up_proj"]},
    {**GPTQ, "version": 1, "lowest": 1},
]


def test_fused(b):
    """Packed projections that a family has in one tensor are split, and an export joins them again."""
    for what in FUSED_VARIANTS:
        path, linears = b.make(model=foreign.PHI3, **what)
        out, _ = b.convert(path)
        check_codes(out, parts(linears))
        b.run("verify", out, "--against", path)
        form = {"compressed": "compressed-tensors", "awq": "awq"}.get(what.get("form", "compressed"))
        if not form or "symmetric" in what:
            continue
        back = b.place("export")
        b.run("export", out, "--format", form, "--kv", "drop", "-o", back)
        have, want = (reader.read_safetensors(p / "model.safetensors") for p in (back, path))
        assert have == want, [n for n in want if have.get(n) != want[n]]


def test_rounded_scales(b):
    """Scales that fp16 lacks are rounded, and the largest relative change is said."""
    path, linears = b.make(dtype="F32")
    out, said = b.convert(path)
    check_codes(out, linears)
    h = [x for l in linears.values() for x in sum(l.h, [])]
    worst = max(abs(foreign.f16(x) / x - 1) for x in h)
    assert 0 < worst < 2 ** -11 and f"largest relative change is {worst:.2g}" in said, (worst, said)
    stated = json.loads((out / "manifest.json").read_text())["provenance"]["weights_from"]
    assert stated == {"format": "compressed-tensors", "projections": 14, "groups": len(h),
                      "rounded_scales": sum(foreign.f16(x) != x for x in h), "mirrored_groups": 0}, stated


def test_group_order(b):
    """Whole groups in another order are read; groups of scattered columns are refused."""
    order = [2, 0, 1]
    for form in ("compressed", "gptq"):
        path, linears = b.make(form=form, order=order)
        out, _ = b.convert(path)
        check_codes(out, linears, order)
    path, _ = b.make(g_idx=[c % 3 for c in range(96)], mixed={"mlp.down_proj": (4, 0)}, keep=[
        f"model.layers.{i}.mlp.down_proj" for i in range(2)])
    said = b.run("convert", path, "--weights-from", path, "-o", b.place("no"), want=2).stderr
    assert "model.layers.0.mlp.gate_proj.weight_g_idx: columns 0 and 1 are in different groups" in said, said


def test_round_trip(b):
    """An export to the format that the weights came from has the tool's own tensors, byte for byte."""
    for form, what in (("compressed-tensors", {}), ("compressed-tensors", {"group": 0}), ("compressed-tensors", {"bits": 8}),
                       ("awq", AWQ), ("awq", {**AWQ, "group": 0})):
        path, linears = b.make(**what)
        artifact, _ = b.convert(path)
        back = b.place("back")
        b.run("export", artifact, "--format", form, "--kv", "drop", "-o", back)
        have, want = (reader.read_safetensors(p / "model.safetensors") for p in (back, path))
        assert have == want, [n for n in want if have.get(n) != want[n]]
        again = b.place("again")
        b.run("convert", back, "--weights-from", back, "-o", again)
        check_codes(again, linears)


EXPERT_VARIANTS = [
    ("qwen3_moe", {}),
    ("qwen3_moe", {"bits": 8, "symmetric": True, "negative": True}),
    ("qwen3_moe", {**AWQ, "keep": [f"model.layers.1.mlp.experts.{e}.up_proj" for e in range(3)]}),
    ("qwen3_moe", AWQ),
    ("mixtral", {**AWQ, "group": 0}),
    ("mixtral", {"group": 0}),
    ("mixtral", {**GPTQ, "version": 1, "lowest": 1}),
]


def check_experts(folder, family, linears):
    """A projection of a layer has the rows of its experts, one expert after the other."""
    have, (_, module, names) = tensors(folder), foreign.EXPERTS[family]
    for layer in range(2):
        for name, own in zip(foreign.EXPERTS["qwen3_moe"][2], names):
            experts = [f"model.layers.{layer}.{module}.{e}.{own}" for e in range(3)]
            joined = f"model.layers.{layer}.mlp.experts.{name}"
            if experts[0] not in linears:
                assert joined + ".weight" in have, joined
                continue
            parts_of = [linears[e] for e in experts]
            x = parts_of[0]
            got = reader.read_linear(have, joined, x.cols, x.bits, x.group)
            want = [sum(part, []) for part in zip(*(e.expected() for e in parts_of))]
            for i, what in enumerate(("codes", "zero points", "scales")):
                assert got[i] == want[i], f"{joined}: {what} differ"


def test_experts(b):
    """Packed experts become one projection of a layer, and an export has each expert's own tensors again."""
    for family, what in EXPERT_VARIANTS:
        path, linears = b.make(model=foreign.EXPERTS[family][0], **what)
        out, said = b.convert(path)
        check_experts(out, family, linears)
        assert f"{len(linears)} projections from" in said, said
        b.run("verify", out, "--against", path)
        form = {"compressed": "compressed-tensors", "awq": "awq"}.get(what.get("form", "compressed"))
        if not form or "symmetric" in what or "keep" in what:
            continue
        back = b.place("export")
        b.run("export", out, "--format", form, "--kv", "drop", "-o", back)
        have, want = (reader.read_safetensors(p / "model.safetensors") for p in (back, path))
        assert have == want, [n for n in want if have.get(n) != want[n]]


def test_experts_learn(b):
    """The cache of a mixture is calibrated and refined under given weights, whose codes stay."""
    model = foreign.EXPERTS["qwen3_moe"][0]
    path, linears = b.make(model=model)
    dense, out = b.place("dense"), b.place("artifact")
    tiny.make_model(dense, 3, **{**foreign.WIDE, **model})
    b.run("quantize", dense, "--weights-from", path, "-o", out, *TRAIN, *REFINE)
    check_experts(out, "qwen3_moe", linears)
    assert cache_of(out) != cache_of(b.convert(path)[0])


def test_experts_that_do_not_fit(b):
    """Experts of a layer have one format, or none of them is packed."""
    model = foreign.EXPERTS["qwen3_moe"][0]
    for what, text in (
            ({"keep": ["model.layers.1.mlp.experts.2.up_proj"]}, "layers.1.mlp.experts.up_proj.weight: 2 of 3 experts are packed"),
            ({"mixed": {"mlp.experts.1.down_proj": (8, 32)}},
             "mlp.experts.1.down_proj.weight has 8 bits in groups of 32 and 64 columns, but model.layers.0.mlp.experts.0."
             "down_proj.weight has 4, 32 and 64"),
            ({"drop": ["layers.0.mlp.experts.1.gate_proj.weight_packed"]}, "2 of 3 experts are packed"),
            ({"beside": "model.layers.1.mlp.experts.up_proj"},
             "tensor model.layers.1.mlp.experts.up_proj.weight stands beside those of single experts"),
            ({"beside": "model.layers.0.mlp.experts.gate_proj", "keep": [
                f"model.layers.0.mlp.experts.{e}.gate_proj" for e in range(3)]},
             "tensor model.layers.0.mlp.experts.gate_proj.weight stands beside those of single experts"),
            ({"also": ["model.layers.0.mlp.gate"]}, "model.layers.0.mlp.gate.weight_packed is packed, but only the projections")):
        path, _ = b.make(model=model, **what)
        said = b.run("convert", path, "--weights-from", path, "-o", b.place("no"), want=2).stderr
        assert text in said, said


def test_conflicts(b):
    """All keys that given weights decide otherwise are in one message, whose options then work."""
    path, _ = b.make()
    wrong = {"weights.scale_bits": "7", "weights.group_size": "64", "weights.mixed": "q_proj=8", "weights.bits": "8",
             "weights.round": "learned", "kv.rotate": "kv"}
    convert = ["convert", path, "--weights-from", path, *(w for k, v in wrong.items() for w in ("--set", f"{k}={v}"))]
    said = b.run(*convert, "-o", b.place("no"), want=2).stderr
    assert all(f"{key} is {value} (" in said for key, value in wrong.items()), said
    (cure,) = re.findall(r"or add((?: --set [a-z_.]+=\S*)+)$", said, re.M)
    assert cure.count("--set") == len(wrong), cure
    b.run(*convert, "-o", b.place("cured"), *shlex.split(cure))


def cache_of(folder):
    return {n: t for n, t in tensors(folder).items() if n.endswith(("_scale", "_shift"))}


def test_calibration(b):
    """The cache learns, from the packed checkpoint alone or from the full-precision one; weights stay."""
    path, linears = b.make()
    dense = b.place("dense")
    tiny.make_model(dense, 3, **foreign.WIDE)
    plain, _ = b.convert(path)
    caches = [cache_of(plain)]
    for model in (path, dense):
        out = b.place("artifact")
        b.run("quantize", model, "--weights-from", path, "-o", out, *TRAIN)
        check_codes(out, linears)
        caches.append(cache_of(out))
        stated = json.loads((out / "manifest.json").read_text())["provenance"]
        assert ("full_precision" in stated) == (model == dense), stated
        assert stated["weights_from"]["format"] == "compressed-tensors"
    assert caches[0] != caches[1] != caches[2] != caches[0]
    # In two steps: the same bytes. The state is that of these two checkpoints.
    state, out = b.place("state"), b.place("artifact")
    b.run("calibrate", dense, "--weights-from", path, "-o", state, *TRAIN)
    b.run("convert", path, "--weights-from", path, "--state", state, "-o", out)
    assert cache_of(out) == caches[2]
    b.run("verify", out, "--against", path, "--state", state, "--data", "t.txt")
    b.run("eval", path, "--state", state, "--data", "t.txt", "--windows", "1", "--ctx", "64")
    said = b.run("calibrate", path, "--weights-from", path, "-o", state, *TRAIN, want=2).stderr
    assert "full_precision" in said, said


def test_refinement(b):
    """By default gains and cache are refined; scales only if they are named."""
    path, linears = b.make()
    before = tensors(b.convert(path)[0])
    for learn, scales_stay in (("auto", True), ("norms+cache", True), ("scales+norms+cache", False)):
        out = b.place("artifact")
        said = b.run("quantize", path, "--weights-from", path, "-o", out, *TRAIN, *REFINE, "--set", f"refine.learn={learn}",
                     "--set", "refine.lr_norms=0.01", "--set", "kv.bits=2").stderr
        assert ("refinement changes the scales of the given weights" in said) != scales_stay, said
        have, want = codes(out), {n: x.expected() for n, x in linears.items()}
        for name in want:
            assert have[name][:2] == want[name][:2], f"{name}: codes or zero points moved"
        assert all(have[n][2] == want[n][2] for n in want) == scales_stay, learn
        checked = json.loads(b.run("verify", out, "--against", path, "--json").stdout)
        weights = sum(len(row) for w in want.values() for row in w[0])
        assert (checked["weights_compared"] >= weights) == scales_stay, (learn, checked, weights)
        assert (checked["weights_unchecked"] < weights) == scales_stay, (learn, checked, weights)
        norm = "model.layers.0.input_layernorm.weight"
        assert tensors(out)[norm] != before[norm], f"{learn}: gains were not refined"


if __name__ == "__main__":
    harness.main(globals(), Bench)
