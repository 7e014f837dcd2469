#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""seeds.py WKVQ OUT: makes the seeds of the fuzz targets from the tests' own models.

OUT/base has the valid files beside the hostile one (a model, two shards, a state, an
artifact); OUT/seeds/TARGET has small inputs of each target. The same program gives the same bytes."""
import bz2
import gzip
import io
import json
import lzma
import pathlib
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE.parent / "cli"))
import foreign
import tiny

SETTINGS = ["calibration.seqlen=32", "calibration.samples=2", "calibration.epochs=1",
            "crr.blocks=1", "weights.group_size=8"]
# As small as possible, so that inputs are short.
SMALL = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
         "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8}


def make_base(wkvq, base):
    """model, text, state, artifact and shards."""
    def run(*args):
        subprocess.run([str(wkvq), *map(str, args)], check=True, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)

    tiny.make_model(base / "model", **SMALL)
    tiny.make_text(base / "t.txt", 600)
    sets = [word for s in SETTINGS for word in ("--set", s)]
    run("calibrate", base / "model", "--data", base / "t.txt", "-o", base / "state", *sets)
    run("convert", base / "model", "-o", base / "artifact", "--set", "weights.group_size=8")
    shutil.copy(ROOT / "tests" / "golden" / "tok" / "spm" / "tokenizer.model", base)
    (base / "shards").mkdir()
    for name in "ab":
        tensor = (f"{name}.weight", "F32", (2, 3), struct.pack("<6f", *range(6)))
        other = (f"{name}.bias", "F16", (3,), bytes(6))
        tiny.write_safetensors(base / "shards" / f"{name}.safetensors", [tensor, other])


def small_safetensors(names=("w",), dtype="F32", item=4):
    buffer = io.BytesIO()
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for n in names:
        header[n] = {"dtype": dtype, "shape": [2, 2], "data_offsets": [at, at + 4 * item]}
        at += 4 * item
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    buffer.write(struct.pack("<Q", len(text)) + text + bytes(at))
    return buffer.getvalue()


def zipped(members, method=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as z:
        for name, data in members:
            z.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


def config_seeds():
    for changes in ({}, {"model_type": "mistral", "sliding_window": 4096},
                    {"model_type": "qwen2", "attention_bias": True},
                    {"model_type": "qwen3"}, {"model_type": "olmo2"},
                    {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "mlp_only_layers": []},
                    {"model_type": "mixtral", "num_local_experts": 4},
                    {"model_type": "gemma3_text", "layer_types": ["sliding_attention", "full_attention"],
                     "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0},
                                         "sliding_attention": {"rope_theta": 10000.0}}},
                    {"model_type": "smollm3", "no_rope_layers": [1, 0], "use_sliding_window": True,
                     "sliding_window": 8},
                    {"model_type": "phi3", "partial_rotary_factor": 0.5, "original_max_position_embeddings": 64,
                     "rope_scaling": {"type": "su", "short_factor": [1.0, 2.0], "long_factor": [3.0, 4.0]}},
                    {"tie_word_embeddings": True},
                    {"rope_scaling": {"rope_type": "llama3", "factor": 8.0,
                                      "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                      "original_max_position_embeddings": 64}},
                    {"rope_parameters": {"rope_type": "linear", "factor": 2.0,
                                         "rope_theta": 5000.0}},
                    {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "mlp_bias": True},
                    {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16,
                                         "beta_slow": 2, "truncate": False, "mscale": 0.7,
                                         "mscale_all_dim": 1.0, "attention_factor": None}},
                    {"eos_token_id": [257, 256]}):
        yield json.dumps({**tiny.CONFIG, **SMALL, **changes}).encode()


def archive_seeds():
    rows = b'{"text": "one"}\n\n{"text": "two \\u00e9"}\n'
    yield gzip.compress(b"a line\n\nanother\n", mtime=0)
    yield gzip.compress(rows, mtime=0)
    yield gzip.compress(b"first", mtime=0) + gzip.compress(b"second member", mtime=0)
    yield gzip.compress(bytes(20000), mtime=0)
    yield zipped([("a/t.txt", b"text\n"), ("b.bin", b"\0\1")])
    yield zipped([("t.raw", b" = Title = \n \n words \n")], zipfile.ZIP_STORED)
    yield zipped([("../../t.txt", b"up"), ("dir/", b"")])
    yield zipped([("r.jsonl", rows)])


    yield lzma.compress(rows)
    yield bz2.compress(rows)
    yield gzip.compress(bz2.compress(b"packed twice\n"), mtime=0)
    # One raw block of a zstd frame, as no module of Python 3.11 writes.
    yield b"\x28\xb5\x2f\xfd\x20\x05\x29\x00\x00hello"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as t:
        for name, data in (("a/t.txt", b"text\n"), ("b.bin", b"\0\1")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    yield buffer.getvalue()


def row_seeds():
    yield b'{"text": "one"}\n{"text": "two \\u00e9\\ud83d\\ude00\\ud800"}\n{"text": null}\n'
    yield b'[{"text": "one", "n": [NaN, -1.5e3]}, {"te\\u0078t": "two"}]'
    yield b'{"version": 1, "data": [{"content": "a"}, {"content": "b", "x": {}}]}'
    yield b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "a", "content": null}]}'
    yield b'{\n"text": "one"\n}\n{\n"text": "two", "text": "three"\n}'


def task_rows():
    yield {"goal": "open it", "sol1": "pull", "sol2": "push", "label": 0}
    yield {"question": "What is wet?", "choices": {"text": ["sand", "rain", "fire"],
           "label": ["A", "B", "C"]}, "answerKey": "B", "id": "q1"}
    yield {"ctx": "A man sits", "ctx_a": "A man sits", "ctx_b": "", "activity_label": "Rest",
           "endings": ["down.", "up [title] x", "in", "out"], "label": "2", "ind": 4}
    yield {"sentence": "The cup was in the box so _ was full.", "option1": "cup",
           "option2": "box", "answer": "2"}


def long_rows():
    row = {"input": "who?", "context": "Long ago there was one. " * 8, "answers": ["one", "1"],
           "length": 40, "dataset": "qasper", "language": "en", "all_classes": None, "_id": "x"}
    yield json.dumps(row).encode() + b"\n"
    yield json.dumps({**row, "dataset": "lcc", "context": "int x;"}).encode() + b"\0" + \
        b'{"lcc": "Complete {{this}}: {context}{input}"}'
    yield json.dumps({**row, "dataset": "triviaqa"}).encode() + b"\0" + \
        b'{"triviaqa": "{context} {input} {length}"}'


def beside_seeds():
    tokens = {"<|im_start|>": 1100, "<|im_end|>": 1101}
    decoder = {str(i): {"content": t, "lstrip": False, "special": True} for t, i in tokens.items()}
    special = {"eos_token": {"content": "<|im_end|>"}, "bos_token": "<s>",
               "additional_special_tokens": ["<|im_start|>"]}
    files = [{"added_tokens_decoder": decoder, "legacy": False, "add_bos_token": False, **special,
              "tokenizer_class": "LlamaTokenizer", "model_max_length": int(1e30)},
             tokens, special, {"eos_token_id": [2, 1101], "temperature": float("nan")},
             {"a": 0, "b": 1, "ab": 2}]
    for i, value in enumerate(files):
        yield marked(i, json.dumps(value).encode())
    yield marked(5, b"#version: 0.2\na b\n\xc4\xa0 a\n")


def marked(number, data):
    """The first byte selects the file."""
    return bytes([number]) + data


NARROW = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
          "num_hidden_layers": 1, "vocab_size": 4}
MIXTURE = {**NARROW, **foreign.EXPERTS["qwen3_moe"][0], "moe_intermediate_size": 16}
# As fuzz_packed.c has them, with what foreign.make() makes them of.
PACKED = {"compressed": {}, "gptq": {}, "awq": {}, "experts": {"form": "gptq", "model": MIXTURE}}


def packed_seeds(base):
    """Both files of a checkpoint in every form, and the weights with all that is optional."""
    for i, name in enumerate(PACKED):
        how = {"form": name, "group": 8, "model": NARROW, **PACKED[name]}
        order = None if name == "awq" else [1, 0]
        foreign.make(base / f"packed-{name}", **how)
        foreign.make(base / f"packed-{name}-order", order=order, dtype="BF16", **how)
        for folder in (f"packed-{name}", f"packed-{name}-order"):
            yield marked(2 * i, (base / folder / "config.json").read_bytes())
            yield marked(2 * i + 1, (base / folder / "model.safetensors").read_bytes())


def split_seeds():
    """The patterns of the golden tokenizers, and some of what else a pattern may hold."""
    text = "Two  words, 3.14159 it's caf\u00e9 \u65e5\u672c!!\n\n\ttab AAbb".encode()
    patterns = ["(?<=a)b|\\Ka", "(?<n>a)\\g<n>?\\k<n>", "(a|aa)+$", "(?>a*)b|[[:alpha:]&&[^x]]", "(?i)stra\u00dfe|\\X", ""]
    for path in sorted((ROOT / "tests" / "golden" / "tok").glob("*/tokenizer.json")):
        steps = json.loads(path.read_text(encoding="utf-8"))["pre_tokenizer"] or {}
        patterns += [s["pattern"]["Regex"] for s in steps.get("pretokenizers", []) if "Regex" in s.get("pattern", {})]
    for i, pattern in enumerate(patterns):
        yield marked(i % 5 | (i % 2) << 7, pattern.encode() + b"\0" + text)


def all_seeds(base):
    tok = ROOT / "tests" / "golden" / "tok"
    state, artifact = base / "state", base / "artifact"
    index = {"metadata": {"total_size": 60},
             "weight_map": {f"{n}.{w}": f"{n}.safetensors" for n in "ab"
                            for w in ("weight", "bias")}}
    recipes = [p.read_bytes() for p in sorted((ROOT / "configs").rglob("*.yaml"))]
    plans = [b"base: {calibration: {samples: 2}, crr.blocks: 1}\n"
             b"grid: {weights.group_size: [32, 64], kv.bits: [4, 8]}\n"
             b"cells:\n  - {name: token only, set: {kv.method: token}}\n"
             b"eval: {data: wiki.raw, windows: 12, ctx: 64}\n"]
    block = (state / "block-0000.safetensors").read_bytes()
    manifest = (artifact / "manifest.json").read_bytes()
    questions = [json.dumps(r).encode() + b"\n" for r in task_rows()]
    yield "beside", list(beside_seeds())
    yield "json", [b'{"a": NaN, "b": [-Infinity, 1e400, 12345678901234567890], "c": "\\ud800"}', b'{"a": [1, -2.5e3, true, null, {"b": "\\ud83d\\ude00"}]}', b"[]", b'"x"']
    yield "safetensors", [small_safetensors(), small_safetensors(("a", "b"), "F16", 2), block,
                          small_safetensors((), "U8", 1)]
    yield "index", [json.dumps(index).encode()]
    yield "config", [*config_seeds(), (artifact / "config.json").read_bytes()]
    yield "tokenizer_json", [(base / "model" / "tokenizer.json").read_bytes(),
                             *(p.read_bytes() for p in sorted(tok.glob("*/tokenizer.json")))]
    yield "tokenizer_model", [p.read_bytes() for p in sorted(tok.glob("*/tokenizer.model"))]
    yield "yaml", [r for r in recipes if len(r) < 16384] + [b"preset: w4kv4\n"]
    yield "sweep", plans + [r for r in recipes if b"grid" in r or b"cells" in r]
    yield "text", [marked(0, b'{"text": "one"}\n{"text": "two"}\n'),
                   marked(1, b"plain \xff text\r\n"), marked(2, b" = T = \n \n row \n"),
                   marked(3, b"id,text\n1,one\n"), marked(1, "\ufeffmark\n".encode()),
                   *(marked(1, "caf\u00e9\n".encode(e)) for e in ("utf-16", "utf-32", "latin-1")),
                   marked(4, b'{"body": "one"}\n')]
    yield "rows", list(row_seeds())
    yield "archive", list(archive_seeds())
    yield "state", [(state / "manifest.json").read_bytes()]
    yield "block", [block]
    yield "manifest", [manifest]
    yield "artifact", [marked(0, (artifact / "config.json").read_bytes()),
                       marked(1, (artifact / "model.safetensors").read_bytes()),
                       marked(2, manifest)]
    yield "packed", list(packed_seeds(base))
    yield "choice", [*questions, questions[0].replace(b', "label": 0', b"") + b"\0" + b"1\n"]
    yield "longbench", list(long_rows())
    yield "split", list(split_seeds())
    yield "mix", [b"v_proj=8:64, 0-3.down_proj=5:128, 29.o_proj=6", b"k=5, 0-3.v=8:32", b"7.q_proj=16:0"]


def main():
    wkvq, out = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2])
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    make_base(wkvq, out / "base")
    for target, inputs in all_seeds(out / "base"):
        folder = out / "seeds" / target
        folder.mkdir(parents=True)
        for i, data in enumerate(inputs):
            (folder / f"seed-{i:02}").write_bytes(data)


if __name__ == "__main__":
    main()
