#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Exports against the artifact: test_export.py WKVQ GOLDEN_MODELS.

A second reader of every format (export_reader.py) unpacks each projection. Its values must be those of the artifact
exactly (--dtype f16 and bf16: rounded once). All other tensors must have the artifact's bytes, and nothing may be there
beside them. The models are tiny: every family of tests/golden/models, and one whose widths have real groups. Also: the
same bytes on every number of threads, the same tensors in shards, sizes as --plan says, and the model card."""
import json
import pathlib
import re
import struct
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "convert")]
import check_artifact as reader
import harness
import run
import tiny
from export_reader import Artifact, read_awq, read_compressed, rounded, take, tensors_in

COPIED = {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}
WIDE = {"hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 32}


class Bench(harness.Bench):
    decode = False

    def __init__(self, wkvq, golden, folder):
        super().__init__(wkvq, folder)
        self.golden, self.count = pathlib.Path(golden).resolve(), 0
        self.model, self.text = self.path / "wide", self.path / "t.txt"
        tiny.make_model(self.model, **WIDE)
        tiny.make_text(self.text)

    def place(self, name):
        self.count += 1
        return self.path / f"{self.count}-{name}"

    def convert(self, model, **settings):
        out = self.place("artifact")
        words = [w for key, value in settings.items() for w in ("--set", f"{key.replace('__', '.')}={value}")]
        self.run("convert", model, "-q", "-o", out, *words)
        return out

    def export(self, artifact, form, *more):
        out = self.place(form)
        self.run("export", artifact, "--format", form, "-o", out, *more)
        return out


# --- checks ---

def check_directory(artifact, folder, dtype, quantized):
    names = {f.name for f in folder.iterdir()}
    kept = {n for n in COPIED if (artifact.folder / n).exists()}
    assert {n for n in names if not n.startswith("model")} == kept | {"config.json", "README.md"}, names
    for name in kept:
        assert (folder / name).read_bytes() == (artifact.folder / name).read_bytes()
    config = json.loads((folder / "config.json").read_text())
    q = config.pop("quantization_config", None)
    assert (q is not None) == quantized
    assert config.pop("torch_dtype") == dtype and config.pop("dtype", dtype) == dtype
    assert config == {k: v for k, v in artifact.config.items() if k not in ("auto_map", "dtype", "torch_dtype")}
    return q


def check_values(tensors, name, rows, dtype):
    shape, data = take(tensors, name + ".weight", dtype)
    assert shape == [len(rows), len(rows[0])]
    assert reader.floats(dtype, data) == [rounded(x, dtype) for row in rows for x in row], name


def check_packed(artifact, folder, form, dtype="float16"):
    q = check_directory(artifact, folder, dtype, True)
    packs_head = form == "compressed-tensors" and "lm_head" in artifact.ends and artifact.head_bits <= 4
    assert q["quant_method"] == form
    assert packs_head == ("lm_head" not in q.get("ignore", q.get("modules_to_not_convert")))
    tensors = tensors_in(folder)
    for name, rows in artifact.ends.items():
        if packs_head and name == "lm_head":
            assert ["re:.*lm_head$"] in [group["targets"] for group in q["config_groups"].values()]
            assert read_compressed(tensors, q, name, artifact.config["hidden_size"]) == rows
        else:
            check_values(tensors, name, rows, {"float16": "F16", "bfloat16": "BF16"}[dtype])
    for name, bits in artifact.bits.items():
        read = read_compressed if form == "compressed-tensors" else read_awq
        have = read(tensors, q, name, artifact.columns(name.split(".")[-1]))
        assert (have is None) == (bits == 16), name
        assert bits == 16 or have == artifact.values[name], name
    assert tensors == artifact.rest, set(tensors) ^ set(artifact.rest)


def check_dense(artifact, folder, dtype):
    check_directory(artifact, folder, {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}[dtype], False)
    tensors = tensors_in(folder)
    for name, rows in {**artifact.values, **artifact.ends}.items():
        check_values(tensors, name, rows, dtype)
    assert set(tensors) == set(artifact.rest)
    for name, (have, shape, data) in artifact.rest.items():
        values = [rounded(x, dtype) for x in reader.floats(have, data)]
        assert tensors[name][:2] == (dtype, shape) and reader.floats(dtype, tensors[name][2]) == values, name


def check_all(b, folder, formats=("compressed-tensors", "awq", "f16", "bf16", "f32")):
    artifact = Artifact(folder)
    for form in formats:
        if form in ("compressed-tensors", "awq"):
            check_packed(artifact, b.export(folder, form), form)
        else:
            check_dense(artifact, b.export(folder, "dense", "--dtype", form), form.upper())


def bytes_in(folder):
    return {f.name: f.read_bytes() for f in folder.iterdir()}


def test_families(b):
    for model in sorted(p for p in b.golden.iterdir() if p.is_dir()):
        check_all(b, b.convert(model, weights__group_size=0))
    check_all(b, b.convert(b.golden / "qwen3_moe_plain", weights__bits=16), ("f16", "bf16", "f32"))
    check_all(b, b.convert(b.golden / "mixtral", weights__group_size=8, weights__mixed="up_proj=16"), ("f32",))


def test_experts(b):
    """One format for the experts of a layer, which engines compute in one kernel, or none."""
    plain = ", ".join(f"1.{kind}_proj=16" for kind in ("gate", "up", "down"))
    for model, mixed, groups in (("qwen3_moe", "0.down_proj=8", 2), ("mixtral", plain, 1),
                                 ("mixtral", plain.replace("1.", ""), 1)):
        folder = b.convert(b.golden / model, weights__group_size=0, weights__mixed=mixed)
        packed = b.export(folder, "compressed-tensors")
        check_packed(Artifact(folder), packed, "compressed-tensors")
        config = json.loads((packed / "config.json").read_text())["quantization_config"]
        assert len(config["config_groups"]) == groups, config
        router = f"model.layers.0.{'mlp' if model == 'qwen3_moe' else 'block_sparse_moe'}.gate"
        assert any(re.match(i[3:], router) for i in config["ignore"] if i.startswith("re:")), config
        wide = config["config_groups"].get("group_1", {"targets": []})["targets"]
        assert wide == ["re:.*layers\\.(0)\\..*experts\\..*$"] * (groups - 1), wide
    folder = b.convert(b.golden / "mixtral", weights__group_size=0, weights__mixed=plain)
    packed = b.export(folder, "awq")
    check_packed(Artifact(folder), packed, "awq")
    keep = json.loads((packed / "config.json").read_text())["quantization_config"]["modules_to_not_convert"]
    parts = [f"model.layers.{i}.block_sparse_moe.gate" for i in range(2)]
    assert keep == ["lm_head", *parts, "model.layers.1.block_sparse_moe.experts"], keep
    said = b.run("export", folder, "--format", "awq", "-o", b.place("awq")).stderr.decode()
    assert "Experts in whole rows: no engine" in said, said


def test_whole_rows_are_not_for_mlx(b):
    for group, want in ((0, True), (32, False)):
        folder = b.convert(b.model, weights__group_size=group)
        said = b.run("export", folder, "--format", "awq", "-o", b.place("awq")).stderr.decode()
        assert ("whole rows: not for MLX" in said) == want, said


def test_groups(b):
    for group in (32, 64, 128):
        check_all(b, b.convert(b.model, weights__group_size=group), ("compressed-tensors", "awq", "f32"))
    check_all(b, b.convert(b.model, weights__bits=8, weights__group_size=64), ("compressed-tensors", "f32"))
    for bits in (2, 3):
        check_all(b, b.convert(b.model, weights__bits=bits, weights__group_size=32))
    for bits in (5, 7):
        check_all(b, b.convert(b.model, weights__bits=bits, weights__group_size=32), ("compressed-tensors", "f32"))


def test_portable(b):
    """Scales of 7 bits: values are exact in float16, scales in bfloat16."""
    folder = b.convert(b.golden / "llama_tied_bf16", weights__group_size=0, weights__scale_bits=7)
    artifact = Artifact(folder)
    assert all(rounded(x, "F16") == x for rows in artifact.values.values() for row in rows for x in row)
    said = b.run("export", folder, "--format", "dense", "--plan").stdout.decode()
    assert "carried  The value of every code, exactly" in said
    said = b.run("export", folder, "--format", "dense", "--dtype", "bf16", "--plan").stdout.decode()
    assert "rounded to BF16, because code and scale have up to 4 and 7 significant bits" in said
    check_packed(artifact, b.export(folder, "awq"), "awq", "bfloat16")
    folder = b.convert(b.golden / "llama_tied_bf16", weights__group_size=0)
    said = b.run("export", folder, "--format", "awq", "--plan").stdout.decode()
    assert "changed  torch_dtype is float16, not the checkpoint's bfloat16" in said
    check_packed(Artifact(folder), b.export(folder, "awq"), "awq", "float16")


def test_gemma(b):
    """vLLM computes Gemma 3 in bfloat16, which holds scales of 7 bits."""
    for scale_bits, want in ((11, "changed  vLLM computes Gemma 3 in bfloat16 alone, which rounds the scales"),
                             (7, "carried  The scales, also in bfloat16, in which vLLM computes Gemma 3")):
        folder = b.convert(b.golden / "gemma3", weights__group_size=0, weights__scale_bits=scale_bits)
        for name in ("compressed-tensors", "awq"):
            said = b.run("export", folder, "--format", name, "--plan").stdout.decode()
            assert want in said, said
    folder = b.convert(b.golden / "gemma3_old", weights__group_size=0, weights__scale_bits=7)
    said = b.run("export", folder, "--format", "awq", "--plan").stdout.decode()
    assert "Gemma" not in said, said  # torch_dtype is bfloat16


    said = b.run("export", folder, "--format", "dense", "--plan").stdout.decode()
    assert "changed  vLLM computes Gemma 3 in bfloat16 alone, which rounds these values once more" in said, said
    # The root of 160 is 12.625 in bfloat16 and 12.6491 in float32; that of 64 is 8 in every type.
    for width, differs in ((160, True), (64, False)):
        model = b.place("gemma")
        tiny.make_model(model, model_type="gemma3_text", architectures=["Gemma3ForCausalLM"], hidden_size=width,
                        torch_dtype="bfloat16")
        folder = b.convert(model, weights__group_size=0)
        for dtype in ("f32", "bf16"):
            said = b.run("export", folder, "--format", "dense", "--dtype", dtype, "--plan").stdout.decode()
            assert ("The factor of the embedding" in said) == (differs and dtype == "f32"), (width, dtype, said)


def test_rounded(b):
    """What has no codes is rounded too, and said to be where a value changes."""
    plain = b.convert(b.model, weights__bits=16)
    norms = sum(name.endswith("norm.weight") for name in reader.read_safetensors(b.model / "model.safetensors"))
    for dtype, note in (("f16", "changed"), ("bf16", "changed"), ("f32", "carried")):
        said = b.run("export", plain, "--format", "dense", "--dtype", dtype, "--plan").stdout.decode()
        assert "of every code" not in said, said
        assert ("without codes from F32 to" in said) == (note == "changed"), said
        assert ("carried  The value of every weight, exactly" in said) == (note == "carried"), said
    packed = b.convert(b.model, weights__group_size=32, weights__scale_bits=7)
    said = b.run("export", packed, "--format", "dense", "--plan").stdout.decode()
    count = int(re.search(r"changed  (\d+) tensors without codes from F32 to F16, rounded; --dtype f32", said)[1])
    assert 2 <= count <= norms + 2, (count, said)
    out = b.export(packed, "dense")
    have, want = tensors_in(out), Artifact(packed).rest
    assert count == sum(reader.floats("F16", have[n][2]) != reader.floats(t[0], t[2]) for n, t in want.items())
    assert f"- changed: {count} tensors without codes" in (out / "README.md").read_text()
    said = b.run("export", packed, "--format", "awq", "--plan").stdout.decode()
    assert "changed  torch_dtype is float16, not the checkpoint's float32" in said, said
    for bits, packs in ((8, False), (6, True)):
        head = b.convert(b.model, weights__group_size=32, head__bits=bits, head__group_size=32)
        said = b.run("export", head, "--format", "awq", "--plan").stdout.decode()
        assert ("--format gguf packs them" in said) == packs, said


def test_rotated_keys(b):
    """llama.cpp rotates keys of heads of 64 channels, and none of 32."""
    for head, rotates in ((32, False), (64, True)):
        model = b.place("rotated")
        tiny.make_model(model, **{**WIDE, "head_dim": head})
        folder = b.convert(model, weights__group_size=32, kv__rotate="k")
        said = b.run("export", folder, "--format", "gguf", "--gguf-pre", "none", "--kv", "drop", "--plan").stdout.decode()
        assert ("carried  The engine rotates keys itself" in said) == rotates, said
        assert (f"llama.cpp has none for a head_dim of {head}" in said) == (not rotates), said


def test_taken_names(b):
    """A tensor that is not the model's gives way to one of the format."""
    model = b.place("extra")
    tiny.make_model(model, num_hidden_layers=1)
    have = [(n, *t) for n, t in reader.read_safetensors(model / "model.safetensors").items()]
    names = [f"model.layers.0.self_attn.q_proj.{tail}" for tail in ("weight_scale", "qzeros")]
    tiny.write_safetensors(model / "model.safetensors", have + [(n, "F32", [1], struct.pack("<f", 2)) for n in names])
    folder = b.place("artifact")
    said = b.run("convert", model, "-o", folder, "--set", "weights.group_size=0").stderr.decode()
    assert "model: they are copied, and nothing is computed with them; the first is " + names[1] in said, said
    for form, taken, kept in (("compressed-tensors", *names), ("awq", *names[::-1])):
        out = b.place(form)
        said = b.run("export", folder, "--format", form, "-o", out).stderr.decode()
        assert "dropped: 1 tensor of names that the format has for its own" in said and f"the first is {taken}" in said, said
        tensors = tensors_in(out)
        assert tensors[kept][0] == "F32" and tensors[taken][0] != "F32", (tensors[kept], tensors[taken][:2])
    check_dense(Artifact(folder), b.export(folder, "dense", "--dtype", "f32"), "F32")


def test_damaged_rest(b):
    """A copied tensor that is not finite ends a run before it calibrates, not when it writes. What copies nothing does not read it."""
    model, out = b.place("damaged"), b.place("artifact")
    tiny.make_model(model, num_hidden_layers=1)
    have = [(n, *t) for n, t in reader.read_safetensors(model / "model.safetensors").items()]
    tiny.write_safetensors(model / "model.safetensors", have + [("model.extra", "F32", [1], struct.pack("<f", float("nan")))])
    said = b.run("calibrate", model, "--data", b.text, "-o", out, "--set", "calibration.seqlen=32", want=2).stderr.decode()
    assert "tensor model.extra: element 0 is nan" in said and not out.exists(), said
    b.run("calibrate", model, "--data", b.text, "-o", out, "--set", "calibration.seqlen=32", "--plan")
    b.run("eval", model, "--data", b.text, "--ctx", 32, "--windows", 1, "-q")


def test_empty(b):
    """A tensor without elements takes no time, whatever its shape."""
    model = b.place("empty")
    tiny.make_model(model, num_hidden_layers=1)
    have = [(n, *t) for n, t in reader.read_safetensors(model / "model.safetensors").items()]
    more = [(f"model.extra.{i}", "F32", shape, b"") for i, shape in enumerate(([1 << 58, 0], [0, 1 << 40], [0]))]
    tiny.write_safetensors(model / "model.safetensors", have + more)
    folder = b.convert(model, weights__group_size=0)
    for form in ("compressed-tensors", "dense"):
        said = tensors_in(b.export(folder, form))
        assert said["model.extra.0"][1:] == ([1 << 58, 0], b""), said["model.extra.0"]


def test_mixed(b):
    mixed = "q_proj=3, 1.o_proj=16, down_proj=8:128, 0.v_proj=4:32, 2.gate_proj=16, 2.up_proj=16, 1.up_proj=5:0"
    folder = b.convert(b.model, weights__group_size=64, weights__mixed=mixed)
    check_all(b, folder, ("compressed-tensors", "f32"))
    config = json.loads((b.export(folder, "compressed-tensors") / "config.json").read_text())["quantization_config"]
    assert len(config["config_groups"]) > 1
    assert config["ignore"] == ["lm_head", "model.layers.1.self_attn.o_proj", "model.layers.2.mlp.gate_proj",
                                "model.layers.2.mlp.up_proj"]
    check_all(b, b.convert(b.model, weights__group_size=64, weights__mixed="v_proj=3:32, 1.down_proj=16"))


def test_fused(b):
    """A family whose checkpoints have q, k, v in one module, and gate, up in another."""
    model = b.place("fused")
    tiny.make_model(model, model_type="phi3", architectures=["Phi3ForCausalLM"], **WIDE,
                    auto_map={"AutoConfig": "configuration_phi3.Phi3Config"})
    mixed = "q_proj=3, 0.v_proj=4:32, 1.o_proj=16, 1.q_proj=16, 1.k_proj=16, 1.v_proj=16, 2.up_proj=2"
    folder = b.convert(model, weights__group_size=64, weights__mixed=mixed, kv__rotate="v")
    check_all(b, folder, ("compressed-tensors", "awq", "f32"))
    q = json.loads((b.export(folder, "compressed-tensors") / "config.json").read_text())["quantization_config"]
    assert q["ignore"] == ["lm_head", "model.layers.1.self_attn.qkv_proj", "model.layers.1.self_attn.o_proj"]
    folder = b.convert(model, weights__group_size=64, weights__mixed="1.q_proj=16, 1.gate_proj=8")
    check_all(b, folder, ("f32", "bf16"))
    said = b.run("export", folder, "--format", "compressed-tensors", "-o", b.place("x"), want=2).stderr.decode()
    assert "layers.1.self_attn.q_proj has 16 bits" in said, said
    narrow = b.place("narrow")
    tiny.make_model(narrow, model_type="phi3", architectures=["Phi3ForCausalLM"], **{**WIDE, "head_dim": 4})
    folder = b.convert(narrow, weights__group_size=0)
    check_all(b, folder, ("f32",))
    for form in ("compressed-tensors", "awq"):
        said = b.run("export", folder, "--format", form, "-o", b.place("x"), want=2).stderr.decode()
        assert f"q_proj has 12 rows, and --format {form} packs 8" in said, said


def tied(b, **changes):
    model = b.place("tied")
    tiny.make_model(model, tie_word_embeddings=True, **changes)
    tensors = reader.read_safetensors(model / "model.safetensors")
    del tensors["lm_head.weight"]
    tiny.write_safetensors(model / "model.safetensors", [(n, *t) for n, t in tensors.items()])
    return model


def test_head(b):
    """A quantized embedding and head: packed where engines have a kernel, and otherwise its values."""
    both = tied(b, **WIDE)
    for bits, group in ((8, 64), (6, 0), (4, 128), (3, 32)):
        for source in (b.model, both):
            check_all(b, b.convert(source, weights__group_size=32, head__bits=bits, head__group_size=group),
                      ("compressed-tensors", "awq", "f16", "f32") if bits > 3 else ("compressed-tensors",))
    mixed = b.convert(b.model, weights__mixed="down_proj=8:32", weights__group_size=32, head__bits=4, head__group_size=0)
    check_all(b, mixed, ("compressed-tensors",))
    said = b.run("export", mixed, "--format", "compressed-tensors", "--plan").stdout.decode()
    assert "carried  The head, with 4 bits in whole rows, as a config group of its own" in said, said
    assert "changed  The embedding of head.bits 4 as values in F16, rounded" in said, said
    assert "3 formats, as config groups" in said, said
    said = b.run("export", mixed, "--format", "dense", "--dtype", "f16", "--plan").stdout.decode()
    assert "code and scale have up to 8 and" in said, said
    narrow = b.convert(b.model, weights__group_size=32, head__bits=4, head__group_size=16)
    said = b.run("export", narrow, "--format", "compressed-tensors", "-o", "no", want=2).stderr.decode()
    assert "lm_head: group_size 16 on rows of 96" in said and "choose head.group_size 32" in said, said
    assert not (b.path / "no").exists()
    check_all(b, narrow, ("awq", "bf16"))
    for scale_bits, dtype in ((4, "bfloat16"), (5, "float16")):
        folder = b.convert(b.golden / "llama_tied_bf16", weights__group_size=0, weights__scale_bits=scale_bits, head__bits=4,
                           head__group_size=0)
        check_packed(Artifact(folder), b.export(folder, "awq"), "awq", dtype)
    said = b.run("export", folder, "--format", "awq", "--plan").stdout.decode()
    assert "carried  The embedding, which is also the head, of head.bits 4 as values in F16, exactly" in said, said


def test_odd_widths(b):
    """100 columns and rows do not fill words; whole rows, because no group fits."""
    model = b.place("odd")
    tiny.make_model(model, num_hidden_layers=1, intermediate_size=100)
    check_all(b, b.convert(model, weights__group_size=0), ("compressed-tensors", "f32"))
    said = b.run("export", b.convert(model, weights__group_size=0), "--format", "awq", "-o", "no", want=2)
    assert b"has 100 rows" in said.stderr and not (b.path / "no").exists()


def projection_bits(folder, artifact):
    """Bits per weight of all tensors of the projections. The shapes of compressed-tensors are none of them."""
    parts = {n: t[2] for n, t in tensors_in(folder).items()
             if n.startswith(tuple(f"{m}." for m in artifact.bits)) and not n.endswith((".weight_shape", ".bias"))}
    shapes = [[len(artifact.values[n]), len(artifact.values[n][0])] if bits < 16 else artifact.rest[f"{n}.weight"][1]
              for n, bits in artifact.bits.items()]
    assert len(parts) >= len(artifact.bits)
    return 8 * sum(map(len, parts.values())) / sum(rows * cols for rows, cols in shapes)


def test_bits(b):
    """The bits per weight of --plan, the command and the card are those of the tensors that were written."""
    mixed = "o_proj=16, down_proj=8, gate_proj=3, up_proj=3"
    for settings, forms in (({}, ("compressed-tensors", "awq", "dense")), ({"weights__mixed": mixed}, ("compressed-tensors", "dense"))):
        folder = b.convert(b.model, weights__group_size=64, kv__method="token", **settings)
        own = json.loads(b.run("inspect", folder, "--json").stdout)["weight_bits"]
        for form in forms:
            out = b.place(form)
            done = json.loads(b.run("export", folder, "--format", form, "-o", out, "--json").stdout)
            want = projection_bits(out, Artifact(folder))
            assert abs(done["weight_bits"] - want) < 1e-6 and abs(done["artifact_weight_bits"] - own) < 1e-6, (done, want, own)
            plan = b.run("export", folder, "--format", form, "--plan").stdout.decode()
            assert f"{want:.3f} bits per weight of the projections" in plan and f"{own:.3f} in the artifact" in plan, plan
            card = (out / "README.md").read_text()
            assert f"take {want:.3f} bits per weight" in card and f"those of the artifact take {own:.3f}." in card, card
            assert form == "dense" or own < want < 16, (form, own, want)
    for kind, bits in (("q4_1", 5), ("q8_0", 8.5)):
        folder = b.convert(b.model, weights__group_size=32, kv__method="token")
        plan = b.run("export", folder, "--format", "gguf", "--gguf-pre", "none", "--weights", kind, "--plan", "--json")
        assert json.loads(plan.stdout)["weight_bits"] == bits, plan.stdout


def test_same_bytes(b):
    folder = b.convert(b.model, weights__group_size=64)
    for form in ("compressed-tensors", "awq", "dense"):
        one = bytes_in(b.export(folder, form, "-j", 1))
        assert bytes_in(b.export(folder, form, "-j", 3)) == one
        cut = b.export(folder, form, "--shard", "40k")
        assert len(list(cut.glob("model-*.safetensors"))) > 3
        assert tensors_in(cut) == tensors_in(b.export(folder, form))
        for options in ([], ["--shard", "40k"]):
            out = b.export(folder, form, *options)
            plan = json.loads(b.run("export", folder, "--format", form, *options, "--plan", "--json").stdout)
            assert plan["bytes"] == sum(len(data) for data in bytes_in(out).values()), form


def front_matter(text):
    head, _, body = text[4:].partition("---\n")
    assert text.startswith("---\n")
    return dict(re.findall(r"^(\w+): (.*)$", head, re.M)), re.findall(r"^- (.*)$", head, re.M), body


def test_card(b):
    folder = b.convert(b.model, weights__group_size=64, kv__method="token")
    def measure(name, *words):
        (b.path / name).write_bytes(b.run("eval", *words, "--data", b.text, "--ctx", 64, "--windows", 3, "--json").stdout)
        return json.loads((b.path / name).read_text())
    measured = measure("after.json", folder, "--against", b.model)
    half = measure("half.json", folder, "--score", "second-half", "--kv-bits", 16, "--chunk", 8)
    out = b.export(folder, "awq", "--base-model", "some-org/Some-Model", "--license", "apache-2.0", "--eval-report",
                   b.path / "after.json", "--eval-report", b.path / "half.json")
    keys, tags, body = front_matter((out / "README.md").read_text())
    assert keys["base_model"] == "some-org/Some-Model" and keys["license"] == "apache-2.0"
    assert tags == ["wkvq", "awq", "4-bit"]
    where = f"{b.text.name} (tokens' CRC-32 {measured['text_crc32']})"
    windows = "3 windows of 64 tokens"
    assert f"| {b.model.name} | 16 | 16 | {measured['against']['ppl']:.4f} | {where} | " \
           f"full precision, {windows}, all predictions scored, chunk 1, an unquantized cache |" in body, body
    bits = [f"{measured['model'][key]:.4g}" for key in ("weight_bits", "kv_bits")]
    assert 4 < float(bits[0]) < 5 and 4 < float(bits[1]) <= 6, bits
    assert f"| {folder.name} | {' | '.join(bits)} | {measured['model']['ppl']:.4f} | {where} | " \
           f"simulation, {windows}, all predictions scored, chunk 1, its own cache |" in body, body
    assert f"| {folder.name} | {bits[0]} | 16 | {half['ppl']:.4f} | {where} | " \
           f"simulation, {windows}, second halves scored, chunk 8, an unquantized cache |" in body, body
    seal = json.loads((folder / "manifest.json").read_text())["manifest_crc32"]
    assert f'"manifest_crc32": "{seal}"' in body and "wkvq export ARTIFACT --format awq --base-model" in body
    assert "- dropped: The cache's format" in body
    assert "--base-model some-org/Some-Model --license apache-2.0 --eval-report FILE --eval-report FILE -o OUT" in body
    assert half["manifest_crc32"] == measured["model"]["manifest_crc32"] == seal and "manifest_crc32" not in measured["against"]
    assert half["texts"] == measured["texts"] == [b.text.name]
    other = b.convert(b.model, weights__group_size=32, kv__method="token")
    measure("other.json", other)
    assert "manifest_crc32" not in measure("plain.json", b.model)
    for report, why in (("other.json", "measured on another artifact"), ("plain.json", "names no artifact")):
        said = b.run("export", folder, "--format", "awq", "-o", b.path / "no", "--eval-report", b.path / report, want=2)
        assert f"{report}: {why}" in said.stderr.decode() and not (b.path / "no").exists(), said.stderr
    measure("reverse.json", other, "--against", folder)
    b.export(folder, "awq", "--eval-report", b.path / "reverse.json")
    for card, license in (("---\nlicense: mit\ntags:\n- x\n---\n# M\n", "mit"), ("---\nlicense: [a, b]\n---\n", None),
                          ("---\nlicense: \"a\\nb\"\n---\n", None), ("---\nlicense: mit\n", None), ("license: mit\n", None)):
        (b.model / "README.md").write_text(card)
        keys, _, _ = front_matter((b.export(b.convert(b.model, weights__group_size=64), "awq") / "README.md").read_text())
        assert keys.get("license") == license, card
    (b.model / "README.md").unlink()
    keys, _, body = front_matter((b.export(folder, "dense") / "README.md").read_text())
    assert "license" not in keys and "base_model" not in keys and "Perplexity" not in body


def test_unknown_settings(b):
    """Settings of a later version are missing in a model card, which only an export of a directory has."""
    folder = b.convert(b.model, weights__group_size=32, kv__method="token")
    path = folder / "manifest.json"
    doc = json.loads(path.read_text())
    doc["config"]["colour"] = "red"
    path.write_bytes(run.sealed(doc))
    for form, more, warns in (("dense", [], True), ("dense", ["--plan"], True), ("gguf", ["--gguf-pre", "none"], False)):
        said = b.run("export", folder, "--format", form, "-o", b.place(form), *more).stderr.decode()
        assert ("colour" in said and "a model card does not list the settings" in said) == warns, said


def test_cache(b):
    folder = b.place("calibrated")
    b.run("quantize", b.model, "-q", "--data", b.text, "-o", folder, "--set", "calibration.seqlen=32", "--set",
          "calibration.samples=2", "--set", "calibration.epochs=1", "--set", "crr.blocks=0", "--set",
          "weights.group_size=32", "--set", "kv.rotate=kv")
    said = b.run("export", folder, "--format", "awq", "-o", "no", want=2).stderr.decode()
    parts = "the smoothing of keys, the shift of keys, the smoothing of values, the shift of values, the rotation of keys"
    assert parts in said and "--kv drop" in said and not (b.path / "no").exists(), said
    done = b.run("export", folder, "--format", "awq", "--kv", "drop", "-o", "yes")
    assert b"dropped: The cache's calibration (" + parts.encode() in done.stderr
    assert b"carried: The rotation of values is in the weights" in done.stderr
    check_packed(Artifact(folder), b.path / "yes", "awq")
    body = (b.path / "yes" / "README.md").read_text()
    listed = json.loads(re.search(r"### Different from the defaults.*?```json\n(.*?)```", body, re.S)[1])
    assert listed.pop("run.compute") in ("f32", "bf16"), "what auto chose"
    assert listed == {"calibration.seqlen": 32, "calibration.samples": 2, "calibration.epochs": 1, "crr.blocks": 0,
                      "weights.group_size": 32, "kv.rotate": "kv"}, listed
    assert "wkvq export ARTIFACT --format awq --kv drop -o OUT" in (b.path / "yes" / "README.md").read_text()


def test_range(b):
    """float16 ends at 65504: packed formats compute in it, and a dense one may not."""
    model = b.place("large")
    tiny.make_model(model, num_hidden_layers=1)
    tensors = reader.read_safetensors(model / "model.safetensors")
    dtype, shape, data = tensors["model.norm.weight"]
    tensors["model.norm.weight"] = dtype, shape, struct.pack("<f", 1e5) + data[4:]
    tiny.write_safetensors(model / "model.safetensors", [(n, *t) for n, t in tensors.items()])
    folder = b.convert(model, weights__group_size=0)
    for form in ("compressed-tensors", "awq", "dense"):
        said = b.run("export", folder, "--format", form, "-o", "no", want=2).stderr.decode()
        assert "model.norm.weight holds 100000, beyond float16's 65504" in said and not list(b.path.glob("no*")), said
    check_all(b, folder, ("bf16", "f32"))
    tensors["model.norm.weight"] = dtype, shape, data
    name = "model.layers.0.mlp.down_proj.weight"
    dtype, shape, data = tensors[name]
    tensors[name] = dtype, shape, struct.pack("<f", 9e4) + data[4:]
    tiny.write_safetensors(model / "model.safetensors", [(n, *t) for n, t in tensors.items()])
    folder = b.convert(model, weights__group_size=0)
    for form in ("compressed-tensors", "awq"):
        said = b.run("export", folder, "--format", form, "-o", "no", want=2).stderr.decode()
        assert re.search(r"tensor model.layers.0.mlp.down_proj.weight holds (89|9\d)\d+.*, beyond float16's 65504", said), said
        assert not list(b.path.glob("no*"))
    check_all(b, folder, ("bf16", "f32"))


if __name__ == "__main__":
    harness.main(globals(), Bench, arguments=2)
