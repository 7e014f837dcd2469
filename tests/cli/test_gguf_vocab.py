#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The tokenizer in `wkvq export --format gguf`: test_gguf_vocab.py WKVQ GOLDEN_TOKENIZERS.

Tokens, types, scores, merges and special ids against the tokenizer's own files, which are read here;
the pre-tokenizer's name; what llama.cpp would tokenize otherwise is refused."""
import base64
import json
import pathlib
import shutil
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import gguf_reader  # noqa: E402
import harness  # noqa: E402
import tiny  # noqa: E402
from gguf_bench import Bench  # noqa: E402

VOCAB = 1500  # more than any of the tokenizers has
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)


def varint(b, at):
    value = shift = 0
    while True:
        value |= (b[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if b[at - 1] < 128:
            return value, at


def protobuf(b):
    at = 0
    while at < len(b):
        key, at = varint(b, at)
        if key & 7 == 0:
            value, at = varint(b, at)
        else:
            n, at = varint(b, at) if key & 7 == 2 else ({1: 8, 5: 4}[key & 7], at)
            value, at = b[at:at + n], at + n
        yield key >> 3, value


def delimited(field, data):
    n, size = len(data), b""
    while n > 127:
        size, n = size + bytes([n & 127 | 128]), n >> 7
    return bytes([field << 3 | 2]) + size + bytes([n]) + data


def pieces(path):
    """(text, score, type) of each piece of a SentencePiece model."""
    out = []
    for field, value in protobuf(path.read_bytes()):
        if field == 1:
            f = dict(protobuf(value))
            out.append((f[1].decode(), struct.unpack("<f", f.get(2, bytes(4)))[0], f.get(3, NORMAL)))
    return out


class Cases(Bench):
    def __init__(self, wkvq, golden, folder):
        super().__init__(wkvq, folder)
        self.golden = pathlib.Path(golden).resolve()

    def artifact(self, files=None, vocab=VOCAB, model=None, **texts):
        """An artifact with the tokenizer of a golden folder, or with the given texts as files and a tokenizer.model."""
        spm = model
        model = self.place("model")
        tiny.make_model(model, num_hidden_layers=1, vocab_size=vocab, intermediate_size=32, bos_token_id=7, eos_token_id=9)
        (model / "tokenizer.json").unlink()
        for file in (self.golden / files).iterdir() if files else []:
            if file.name != "cases.json":
                shutil.copy(file, model)
        if spm:
            shutil.copy(spm, model / "tokenizer.model")
        for name, text in texts.items():
            (model / name.replace("__", ".")).write_text(text)
        return self.convert(model, "weights.group_size=32")

    def keys(self, artifact, *options):
        """The tokenizer's keys, and the notes."""
        g = gguf_reader.Gguf(self.export(artifact, *options))
        plan = self.plan(artifact, *options)
        short = {k.split(".", 2)[2] if k.startswith("tokenizer.ggml.") else k: v for k, v in g.keys.items()}
        return short, " ".join(n["text"] for n in plan["notes"])


def check_unused(keys, known, vocab=VOCAB):
    assert len(keys["tokens"]) == len(keys["token_type"]) == vocab
    for i in set(range(vocab)) - set(known):
        assert keys["tokens"][i] == f"[PAD{i}]" and keys["token_type"][i] == UNUSED, i


# --- byte-level -----------------------------------------------------------------------------------------------


def check_bytes(cases, name, pre, bos, eos, add_bos):
    keys, notes = cases.keys(cases.artifact(name))
    source = json.loads((cases.golden / name / "tokenizer.json").read_text())
    added = {t["id"]: t for t in source["added_tokens"]}
    vocab = {i: text for text, i in source["model"]["vocab"].items()}
    assert keys["model"] == "gpt2" and keys["pre"] == pre, (name, keys["pre"])
    for i, text in {**vocab, **{i: t["content"] for i, t in added.items()}}.items():
        kind = NORMAL if i not in added else CONTROL if added[i]["special"] else USER
        assert (keys["tokens"][i], keys["token_type"][i]) == (text, kind), (name, i)
    check_unused(keys, {*vocab, *added})
    merges = [m if isinstance(m, str) else " ".join(m) for m in source["model"]["merges"]]
    assert keys["merges"] == merges and "scores" not in keys
    assert (keys["bos_token_id"], keys["eos_token_id"], keys["add_bos_token"]) == (bos, eos, add_bos), name
    assert keys["add_eos_token"] is False and keys["add_space_prefix"] is False
    assert ("NFC" in notes) == (name == "qwen2"), notes


def test_bytes(cases):
    check_bytes(cases, "gpt2", "gpt-2", 0, 0, False)
    check_bytes(cases, "smollm2", "smollm", 1, 2, False)
    check_bytes(cases, "qwen2", "qwen2", 7, 1202, False)
    check_bytes(cases, "llama3", "llama-bpe", 1200, 1201, True)
    for name, pre in (("gpt4", "dbrx"), ("deepseek3", "deepseek-v3"), ("viking", "viking")):
        assert cases.keys(cases.artifact(name))[0]["pre"] == pre, name


def test_ranks(cases):
    """Meta's tokenizer.model: every split of a token is a merge, in order of the token's rank."""
    keys, _ = cases.keys(cases.artifact("ranks"))
    lines = (cases.golden / "ranks" / "tokenizer.model").read_text().split("\n")
    chars = tiny.byte_characters()
    tokens = ["".join(chars[b] for b in base64.b64decode(line.split()[0])) for line in lines if line]
    known, merges = set(tokens), []
    for t in tokens:
        merges += sorted((tokens.index(t[:k]), tokens.index(t[k:])) for k in range(1, len(t)) if t[:k] in known and t[k:] in known)
    assert keys["pre"] == "llama-bpe" and keys["tokens"][:len(tokens)] == tokens
    assert keys["merges"] == [f"{tokens[a]} {tokens[b]}" for a, b in merges]
    assert keys["tokens"][keys["bos_token_id"]] == "<|begin_of_text|>" and keys["add_bos_token"] is True
    assert keys["tokens"][keys["eos_token_id"]] == "<|end_of_text|>"


def test_llama3_without_ignore_merges(cases):
    source = json.loads((cases.golden / "llama3" / "tokenizer.json").read_text())
    source["model"]["ignore_merges"] = False
    assert cases.keys(cases.artifact(tokenizer__json=json.dumps(source)))[0]["pre"] == "dbrx"


# --- SentencePiece --------------------------------------------------------------------------------------------


def check_model(cases, name, add_bos, added):
    keys, _ = cases.keys(cases.artifact(name))
    want = pieces(cases.golden / name / "tokenizer.model")
    assert keys["model"] == "llama" and keys["pre"] == "default" and "merges" not in keys
    for i, (text, score, kind) in enumerate(want):
        if i not in added:
            assert (keys["tokens"][i], keys["scores"][i], keys["token_type"][i]) == (text, score, kind), (name, i)
    for i, (text, kind) in added.items():
        assert (keys["tokens"][i], keys["token_type"][i]) == (text, kind), (name, i)
    check_unused(keys, {*range(len(want)), *added})
    assert keys["add_bos_token"] is add_bos and keys["add_space_prefix"] is True
    assert (keys["bos_token_id"], keys["unknown_token_id"]) == (1, 0)


def test_model(cases):
    check_model(cases, "spm", True, {})
    added = json.loads((cases.golden / "added" / "added_tokens.json").read_text())
    check_model(cases, "added", False, {1: ("<s>", CONTROL), **{
        i: (t, CONTROL if t.startswith("<|") else USER) for t, i in added.items()}})


def like_llama2(model):
    """The tokenizer.json that Hugging Face makes of a SentencePiece model: every split of a piece is a merge."""
    listed = pieces(model)
    vocab = {text: i for i, (text, _, _) in enumerate(listed)}
    merges = []
    for text, score, kind in listed:
        for k in range(1, len(text)) if kind == NORMAL else ():
            if text[:k] in vocab and text[k:] in vocab:
                merges.append((-score, vocab[text[:k]], vocab[text[k:]], [text[:k], text[k:]]))
    special = [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
                "special": True} for i, (t, _, kind) in enumerate(listed) if kind in (UNKNOWN, CONTROL)]
    return {"added_tokens": special, "pre_tokenizer": None, "decoder": None, "post_processor": None,
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "\u2581"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
            "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "vocab": vocab,
                      "merges": [m[3] for m in sorted(merges)]}}


def test_scores(cases):
    """Scores that are made from merges order the tokens as the model's own scores do."""
    model = cases.golden / "spm" / "tokenizer.model"
    source, listed = like_llama2(model), pieces(model)
    keys, _ = cases.keys(cases.artifact(tokenizer__json=json.dumps(source)))
    merged = {source["model"]["vocab"][a + b] for a, b in source["model"]["merges"]}
    assert len(merged) > 500
    assert sorted(merged, key=lambda i: -keys["scores"][i]) == sorted(merged, key=lambda i: -listed[i][1])
    assert keys["token_type"][:len(listed)] == [kind for _, _, kind in listed]
    assert keys["tokens"][:len(listed)] == [text for text, _, _ in listed]
    assert keys["add_space_prefix"] is True and keys["add_bos_token"] is False
    merges = source["model"]["merges"]
    source["model"]["vocab"]["x" * 257] = len(listed)
    cases.refuse(cases.artifact(tokenizer__json=json.dumps(source)), [f"token {len(listed)} has 257 bytes", "at most 256"])
    del source["model"]["vocab"]["x" * 257]
    lost = merges.pop(300)
    cases.refuse(cases.artifact(tokenizer__json=json.dumps(source)), ["are no merge", "tokenizer.model", *lost])
    first = next(i for i in range(len(merges)) if "".join(merges[i]) == "".join(merges[i + 1]))
    merges.insert(300, lost)
    merges.insert(len(merges), merges.pop(first))
    cases.refuse(cases.artifact(tokenizer__json=json.dumps(source)), ["merges of other tokens stand between"])
    # The model's own scores decide where they are beside the merges.
    beside = cases.artifact(tokenizer__json=json.dumps(source), model=model)
    keys, _ = cases.keys(beside)
    normal = [i for i, (_, _, kind) in enumerate(listed) if kind in (NORMAL, BYTE)]
    assert [keys["scores"][i] for i in normal] == [listed[i][1] for i in normal] and not keys["add_bos_token"]
    other = cases.artifact(tokenizer__json=json.dumps(source), model=cases.golden / "unigram" / "tokenizer.model")
    cases.refuse(other, ["merges of other tokens stand between"])


def test_a_split_at_replaced_spaces(cases):
    """Gemma's tokenizers replace all spaces and then split at spaces, which divides nothing. Any other split is refused."""
    source = like_llama2(cases.golden / "spm" / "tokenizer.model")
    source["normalizer"] = source["normalizer"]["normalizers"][1]

    def keys(artifact):
        return {k: v for k, v in cases.keys(artifact)[0].items() if not k.startswith(("general.", "wkvq."))}

    plain = cases.artifact(tokenizer__json=json.dumps(source))
    want, text = keys(plain), cases.path / "spaces.txt"
    assert want["add_space_prefix"] is False and len(want["tokens"]) == VOCAB
    text.write_text(" two  spaces,\nand a line ")
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    for change in ({}, {"behavior": "Removed"}):
        artifact = cases.artifact(tokenizer__json=json.dumps({**source, "pre_tokenizer": {**split, **change}}))
        assert keys(artifact) == want
        assert cases.run("tokenize", artifact, text).stdout == cases.run("tokenize", plain, text).stdout
    for change in ({"invert": True}, {"pattern": {"String": "\u2581"}}, {"pattern": {"Regex": " "}}):
        artifact = cases.artifact(tokenizer__json=json.dumps({**source, "pre_tokenizer": {**split, **change}}))
        cases.refuse(artifact, ["no counterpart in GGUF, which knows those of Llama-2, Mistral and Gemma"])


# --- the rest -------------------------------------------------------------------------------------------------


def test_templates(cases):
    tokenizer = (cases.golden / "gpt2" / "tokenizer.json").read_text()

    def template(**files):
        return cases.keys(cases.artifact(tokenizer__json=tokenizer, **files))[0].get("tokenizer.chat_template")

    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ yes }}"}]
    assert template() is None
    assert template(tokenizer_config__json=json.dumps({"chat_template": "{{ a }}\n"})) == "{{ a }}\n"
    assert template(tokenizer_config__json=json.dumps({"chat_template": named})) == "{{ yes }}"
    assert template(tokenizer_config__json=json.dumps({"chat_template": "old"}), chat_template__jinja="{{ new }}") == "{{ new }}"


def test_special_ids(cases):
    """Names of tokenizer_config.json come first, then the ids of config.json."""
    tokenizer = (cases.golden / "gpt2" / "tokenizer.json").read_text()
    keys, _ = cases.keys(cases.artifact(tokenizer__json=tokenizer))
    assert (keys["bos_token_id"], keys["eos_token_id"]) == (7, 9) and "padding_token_id" not in keys
    config = {"bos_token": "er", "eos_token": {"content": "th"}, "unk_token": "the", "pad_token": "<|endoftext|>"}
    keys, _ = cases.keys(cases.artifact(tokenizer__json=tokenizer, tokenizer_config__json=json.dumps(config)))
    ids = [keys[f"{k}_token_id"] for k in ("bos", "eos", "unknown", "padding")]
    assert [keys["tokens"][i] for i in ids] == ["er", "th", "the", "<|endoftext|>"]


def test_types(cases):
    """A token that takes in spaces around it is said; one in <|...|> is a control token whatever its flag."""
    source = json.loads((cases.golden / "gpt2" / "tokenizer.json").read_text())
    for i, text in ((1200, "<|tool|>"), (1201, "plain")):
        source["added_tokens"].append({**source["added_tokens"][0], "id": i, "content": text, "special": False, "lstrip": True})
    keys, notes = cases.keys(cases.artifact(tokenizer__json=json.dumps(source)))
    assert keys["token_type"][1200:1202] == [CONTROL, USER] and "2 added tokens that take in spaces" in notes


def test_small_embedding(cases):
    keys, notes = cases.keys(cases.artifact("llama3", vocab=1201))
    assert len(keys["tokens"]) == 1201 and keys["tokens"][1200] == "<|begin_of_text|>"
    assert "tokens beyond the 1201 rows" in notes and keys["eos_token_id"] == 9


def test_names(cases):
    keys, _ = cases.keys(cases.artifact("smollm2"), "--gguf-pre", "gpt-2")
    assert keys["pre"] == "gpt-2"
    keys, notes = cases.keys(cases.artifact("smollm2"), "--gguf-pre", "none")
    assert keys["model"] == "none" and "tokens" not in keys and "token ids only" in notes


def two_before(source):
    entry = {"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}}
    source["post_processor"]["processors"][1]["single"].insert(0, entry)
    return source


def test_refusals(cases):
    def changed(name, change):
        source = json.loads((cases.golden / name / "tokenizer.json").read_text())
        return cases.artifact(tokenizer__json=json.dumps(change(source) or source))

    # Merges that were learned as such, not made from scores.
    for name in ("llama2", "mistral"):
        cases.refuse(cases.artifact(name), ["form a token but are no merge", "tokenizer.model"])
    for name in ("flags", "bare"):
        cases.refuse(cases.artifact(name), ["no counterpart in GGUF", "tokenizer.model", "--gguf-pre none"])
    cases.refuse(cases.artifact("prefix"), ["is not recognized", "SmolLM", "--gguf-pre NAME"])
    cases.refuse(cases.artifact("unigram"), ["unigram", "supported: BPE"])
    cases.refuse(cases.artifact("unigram_bytes"), ["Unigram", "supported: BPE"])
    for name in ("gpt4o", "tekken", "falcon", "deepseek2"):  # llama.cpp's expressions of these names find other words
        cases.refuse(cases.artifact(name), ["is not recognized", "give --gguf-pre NAME, as gpt-4o or tekken"])
    def first_step(**change):
        source = json.loads((cases.golden / "viking" / "tokenizer.json").read_text())
        source["pre_tokenizer"]["pretokenizers"][0].update(change)
        return cases.artifact(tokenizer__json=json.dumps(source))

    written = {"Regex": " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"}
    assert cases.keys(first_step(pattern=written))[0]["pre"] == "viking"
    for change in ({"behavior": "Removed"}, {"invert": True}, {"pattern": {"String": " "}}):
        cases.refuse(first_step(**change), ["is not recognized"])
    charsmap = dict(protobuf(dict(protobuf((cases.golden / "rules" / "tokenizer.model").read_bytes()))[3]))[2]
    spec = delimited(3, delimited(2, charsmap))  # the last normalizer_spec counts
    both = cases.place("normalized.model")
    both.write_bytes((cases.golden / "spm" / "tokenizer.model").read_bytes() + spec)
    cases.refuse(cases.artifact(model=both), ["its normalization has no counterpart"])
    cases.refuse(cases.artifact("spm"), ["not a byte-level tokenizer"], "--gguf-pre", "gpt-2")
    cases.refuse(changed("qwen2", lambda s: s["model"].update(ignore_merges=True)), ["is not recognized"])
    cases.refuse(changed("llama3", two_before), ["adds 2 tokens before"])
    cases.refuse(changed("llama3", lambda s: s.update(normalizer={"type": "Prepend", "prepend": "x"})),
                 ["normalizer other than NFC"])
    cases.refuse(cases.artifact("llama3", vocab=1200), ["BOS token has no row"])


# --- the vocabulary of another file ----------------------------------------------------------------------------


def text_value(s):
    data = s if isinstance(s, bytes) else s.encode()
    return struct.pack("<Q", len(data)) + data


def list_value(kind, items):
    return struct.pack("<IQ", kind, len(items)) + b"".join(text_value(i) if kind == 8 else i for i in items)


def vocab_file(path, *keys, version=2, magic=b"GGUF"):
    """A GGUF file without tensors. keys: (name, type, bytes of the value)."""
    body = b"".join(text_value(name) + struct.pack("<I", kind) + value for name, kind, value in keys)
    path.write_bytes(magic + struct.pack("<IQQ", version, 0, len(keys)) + body)
    return path


def tokenizer_keys(path):
    return {k: v for k, v in gguf_reader.Gguf(path).keys.items() if k.startswith("tokenizer.")}


def test_copied(cases):
    """All keys of the tokenizer, and only those, for tokenizers that cannot be converted, too."""
    for name in ("smollm2", "prefix"):
        artifact = cases.artifact(name)
        source = cases.export(artifact, "--gguf-pre", "tekken", "--base-model", "x/other")
        copied = cases.export(artifact, "--gguf-vocab", source)
        assert tokenizer_keys(copied) == tokenizer_keys(source) and tokenizer_keys(source)["tokenizer.ggml.pre"] == "tekken"
        assert gguf_reader.Gguf(copied).keys["general.name"] != "other"
        _, notes = cases.keys(artifact, "--gguf-vocab", source)
        assert "with the artifact's tokens; its words and merges were not compared" in notes
    own = pieces(cases.golden / "unigram" / "tokenizer.model")
    names = [t for t, _, _ in own] + [f"[{i}]" for i in range(VOCAB - len(own))]
    numbers = [(f"tokenizer.n{kind}", kind, bytes(range(1, size + 1))) for kind, size in
               ((0, 1), (1, 1), (2, 2), (3, 2), (4, 4), (5, 4), (10, 8), (11, 8))]
    model, tokens = ("tokenizer.ggml.model", 8, text_value("t5")), ("tokenizer.ggml.tokens", 9, list_value(8, names))
    good = [("a.key", 9, list_value(10, [bytes(8)] * 3)), model, tokens, *numbers, ("tokenizer.none", 9, list_value(6, []))]
    file = vocab_file(cases.place("vocab"), *good)
    unigram = cases.artifact("unigram")
    have = tokenizer_keys(cases.export(unigram, "--gguf-vocab", file))
    assert have["tokenizer.ggml.tokens"] == names and have["tokenizer.n10"] == 0x0807060504030201
    assert len(have) == len(good) - 1 and have["tokenizer.none"] == []

    def refuse(words, *keys, artifact=unigram, **how):
        cases.refuse(artifact, ["--gguf-vocab ", *words], "--gguf-vocab", vocab_file(cases.place("vocab"), *keys, **how))

    at = next(i for i, (_, _, kind) in enumerate(own) if kind == NORMAL)
    as_long = names[at][:-1] + "#"
    other = [*names[:at], as_long, *names[at + 1:]]
    refuse([f'token {at} is "{as_long}", and "{names[at]}"', "vocabulary of this model"], model, (tokens[0], 9, list_value(8, other)))
    refuse([f"{VOCAB - 1} tokens", f"{VOCAB} rows"], model, (tokens[0], 9, list_value(8, names[1:])))
    refuse(["it has no tokenizer"], tokens)
    refuse(["it has no tokenizer"], ("tokenizer.ggml.model", 8, text_value("none")), tokens)
    refuse(["items of type 4, want strings"], model, (tokens[0], 9, list_value(4, [bytes(4)] * VOCAB)))
    refuse(["tokenizer.ggml.model stands there twice"], model, tokens, model)
    refuse(["a value of type 13"], model, tokens, ("x", 13, b""))
    wrapped = struct.pack("<IQ", 5, (1 << 62) + 1) + bytes(4)  # 4 bytes, modulo 2^64
    refuse([f"an array of {(1 << 62) + 1} items"], model, tokens, ("x", 9, wrapped))
    refuse(["an array of type 9"], model, tokens, ("x", 9, list_value(9, [])))
    refuse(["more than 64 keys"], model, tokens, *[(f"tokenizer.x{i}", 7, b"\1") for i in range(63)])
    refuse(["of version 1, want 2 or 3"], model, tokens, version=1)
    refuse(["not a GGUF file"], model, tokens, magic=b"GGML")
    refuse(['"', "in the artifact's tokenizer"], model, tokens, artifact=cases.artifact("gpt2"))
    cases.refuse(unigram, ["nothing: No such file"], "--gguf-vocab", "nothing")
    cases.refuse(unigram, ["give one of them"], "--gguf-vocab", file, "--gguf-pre", "none")
    text = cases.run("export", unigram, "--format", "awq", "--gguf-vocab", file, "-o", cases.place("x"), want=2).stderr
    assert "--gguf-vocab is for --format gguf" in text, text


if __name__ == "__main__":
    harness.main(globals(), Cases, arguments=2)
