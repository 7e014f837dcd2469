#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A GGUF file that `wkvq export` wrote, in llama.cpp.

    gguf_check.py tokens     GGUF ARTIFACT TEXTS.json [TEXT...]
    gguf_check.py generate   GGUF [PROMPT]
    gguf_check.py perplexity GGUF TEXT [OTHER.gguf]
    gguf_check.py cache      ARTIFACT TEXT [OTHER]
    gguf_check.py models     tests/golden/models
    gguf_check.py tokenizers tests/golden/tok
    gguf_check.py words      tests/golden/tok [NAME=PRE...]

tokens compares ids with those of `wkvq tokenize`, on each string of a JSON list and on whole files.
generate prints 24 tokens, chosen greedily. perplexity is over the second half of each of WINDOWS
windows of WINDOW tokens, as llama-perplexity counts; with a second file it also prints the ratio and
its standard error, and fails if it is off 1 by more than LIMIT. cache compares the mean loss of WINDOWS windows in the
cache of an artifact's kv.target, simulated by `wkvq eval` and in llama.cpp, which has the artifact's values in F32, and
fails if the two differ by more than a fifth of what that cache costs, or without it by more than 1e-5; with another
artifact also the losses of both in llama.cpp, paired. models exports every model, unquantized,
and compares logits with those of transformers. tokenizers exports every tokenizer and compares ids with
those of its reference, on texts in NFC without the names of special tokens. words does so for texts in many scripts, with every
pair of bytes as a token, so that another word gives other ids; NAME=PRE exports tests/golden/tok/NAME with --gguf-pre PRE
(it takes the package tokenizers). In files of longrope, models moves the end of the short factors beyond llama.cpp's least context. Environment: WKVQ (the program), WINDOWS (4),
WINDOW (512), LIMIT (0.03), THREADS (1). Exits with 77 without the package llama-cpp-python."""
import ctypes
import json
import math
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import unicodedata

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests/cli"))
import tiny  # noqa: E402

try:
    import llama_cpp as lc
    import numpy as np
except ImportError as e:
    print(f"gguf_check.py: {e}: install llama-cpp-python", file=sys.stderr)
    sys.exit(77)

WKVQ = os.environ.get("WKVQ", "build/tools/wkvq")
THREADS = int(os.environ.get("THREADS", "1"))
WINDOWS = int(os.environ.get("WINDOWS", "4"))
WINDOW = int(os.environ.get("WINDOW", "512"))
LIMIT = float(os.environ.get("LIMIT", "0.03"))
# llama.cpp rounds activations to the type of the weights: 24, 11 and 8 significant bits.
MODEL_LIMIT = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 2e-2}


@lc.llama_log_callback
def log(level, text, _):
    if level >= 4 or os.environ.get("VERBOSE"):  # errors
        sys.stderr.write(text.decode(errors="replace"))


GGML_F32, GGML_Q4_0, GGML_Q4_1 = 0, 2, 3
CACHES = {"llama.cpp-q4_0": GGML_Q4_0, "llama.cpp-q4_1": GGML_Q4_1}


class Model:
    """cache: the type of the cache's keys and values; None: llama.cpp's default. A quantized one needs flash attention."""
    def __init__(self, path, vocab_only=False, context=WINDOW, cache=None):
        lc.llama_log_set(log, ctypes.c_void_p())
        lc.llama_backend_init()
        how = lc.llama_model_default_params()
        how.vocab_only = vocab_only
        self.model = lc.llama_model_load_from_file(str(path).encode(), how)
        if not self.model:
            sys.exit(f"gguf_check.py: llama.cpp does not load {path}")
        self.vocab = lc.llama_model_get_vocab(self.model)
        if not vocab_only:
            how = lc.llama_context_default_params()
            how.n_ctx = how.n_batch = how.n_ubatch = context
            how.n_threads = how.n_threads_batch = THREADS
            if cache is not None:
                how.type_k = how.type_v = cache
                how.flash_attn_type = int(cache != GGML_F32)
            self.context = lc.llama_init_from_model(self.model, how)
            self.n_vocab = lc.llama_vocab_n_tokens(self.vocab)

    def tokens(self, text, special=False):
        data = text.encode()
        room = len(data) + 16
        ids = (lc.llama_token * room)()
        n = lc.llama_tokenize(self.vocab, data, len(data), ids, room, special, True)
        assert n >= 0, n
        return list(ids[:n])

    def logits(self, ids):
        """One row per token, from an empty cache."""
        lc.llama_memory_clear(lc.llama_get_memory(self.context), True)
        batch = lc.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.logits[i] = token, i, 1
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
        assert lc.llama_decode(self.context, batch) == 0
        data = lc.llama_get_logits(self.context)
        rows = np.ctypeslib.as_array(data, shape=(len(ids), self.n_vocab)).copy()
        lc.llama_batch_free(batch)
        return rows


def own_ids(artifact, path):
    done = subprocess.run([WKVQ, "tokenize", "-q", artifact, path], capture_output=True, check=True)
    return [int(i) for i in done.stdout.split()]


def same_ids(model, artifact, text, path):
    have, want = model.tokens(text), own_ids(artifact, path)
    if have == want:
        return True
    at = next((i for i, (a, b) in enumerate(zip(have, want)) if a != b), min(len(have), len(want)))
    print(f"{text[:60]!r}: at {at} of {len(want)}: {have[at:at + 6]}, want {want[at:at + 6]}")
    return False


def check_tokens(gguf, artifact, listed, *files):
    model = Model(gguf, vocab_only=True)
    texts = [t for t in json.loads(pathlib.Path(listed).read_text()) if t]
    good = 0
    with tempfile.TemporaryDirectory() as folder:
        row = pathlib.Path(folder, "row.jsonl")  # in JSON, a text is not mistaken for another kind of file
        for text in texts:
            row.write_text(json.dumps({"text": text}) + "\n")
            good += same_ids(model, artifact, text, row)
    for file in files:
        good += same_ids(model, artifact, pathlib.Path(file).read_bytes().decode(), file)
    print(f"{good} of {len(texts) + len(files)} texts have the same ids")
    return 0 if good == len(texts) + len(files) else 1


def generate(gguf, prompt="The capital of France is"):
    model = Model(gguf, context=256)
    ids = model.tokens(prompt, special=True)
    for _ in range(24):
        ids.append(int(model.logits(ids)[-1].argmax()))
    piece = ctypes.create_string_buffer(64 * len(ids))
    n = lc.llama_detokenize(model.vocab, (lc.llama_token * len(ids))(*ids), len(ids), piece, len(piece), False, True)
    print(piece.raw[:n].decode(errors="replace"))
    return 0


def losses(gguf, text):
    """Nats per scored token, a row per window."""
    model = Model(gguf)
    ids = model.tokens(pathlib.Path(text).read_text())
    rows = []
    for w in range(WINDOWS):
        window = ids[w * WINDOW:(w + 1) * WINDOW]
        z = model.logits(window).astype(np.float64)[WINDOW // 2:-1]
        want = np.array(window[WINDOW // 2 + 1:])
        top = z.max(axis=1)
        total = np.log(np.exp(z - top[:, None]).sum(axis=1)) + top
        rows.append(total - z[np.arange(len(want)), want])
    return np.array(rows)


def perplexity(gguf, text, other=None):
    a = losses(gguf, text)
    print(f"{gguf}: perplexity {math.exp(a.mean()):.4f} over {a.size} tokens")
    if other is None:
        return 0
    b = losses(other, text)
    print(f"{other}: perplexity {math.exp(b.mean()):.4f}")
    d = (a - b).ravel()
    ratio = math.exp(d.mean())
    print(f"ratio {ratio:.4f} +- {ratio * d.std() / math.sqrt(d.size):.4f}")
    return 0 if abs(ratio - 1) <= LIMIT else 1


def values(artifact, folder):
    """A GGUF file of the artifact's values in F32, for which llama.cpp rounds no activations."""
    folder = pathlib.Path(tempfile.mkdtemp(dir=folder))
    dense, plain, gguf = (folder / kind for kind in ("dense", "plain", "gguf"))
    for job in (["export", artifact, "--format", "dense", "--dtype", "f32", "--kv", "drop", "-o", dense],
                ["convert", dense, "-o", plain, "--set", "weights.bits=16", "--set", "kv.bits=16"],
                ["export", plain, "--format", "gguf", "-o", gguf]):
        wkvq(*job)
    return gguf


def wkvq(*job):
    done = subprocess.run([WKVQ, *job, "-q"], stdout=subprocess.PIPE)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def simulated(artifact, text, *options):
    return json.loads(wkvq("eval", artifact, "--data", text, "--ctx", str(WINDOW), "--windows", str(WINDOWS), "--json",
                           "--set", "run.compute=f32", *options))["nll"]


def window_losses(gguf, cache, ids):
    """The mean loss of each window."""
    model, out = Model(gguf, context=WINDOW, cache=cache), []
    for window in (ids[w * WINDOW:(w + 1) * WINDOW] for w in range(WINDOWS)):
        rows = model.logits(window)[:-1].astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        chosen = rows[np.arange(len(rows)), window[1:]]
        out.append((np.log(np.exp(rows).sum(axis=1)) - chosen).mean())
    return np.array(out)


def check_cache(artifact, text, other=None):
    kv = json.loads(pathlib.Path(artifact, "config.json").read_text())["quantization_config"]["kv"]
    target = kv.get("target")
    if target not in CACHES:
        sys.exit(f"gguf_check.py: {artifact} has kv.target {target}, want one of {', '.join(CACHES)}")
    ids = own_ids(artifact, text)
    own, own_exact = simulated(artifact, text), simulated(artifact, text, "--kv-bits", "16")
    with tempfile.TemporaryDirectory() as folder:
        gguf = values(artifact, pathlib.Path(folder))
        served, exact = (window_losses(gguf, c, ids) for c in (CACHES[target], GGML_F32))
        print(f"{target}: simulated {own:.6f}, llama.cpp {served.mean():.6f} nats; without it {own_exact:.6f}, {exact.mean():.6f}")
        if other:
            rest = window_losses(values(other, pathlib.Path(folder)), CACHES[target], ids)
            d = served - rest
            print(f"{other}: llama.cpp {rest.mean():.6f}; difference {d.mean():+.6f} +- {d.std(ddof=1) / math.sqrt(d.size):.6f}")
    agree = abs(own - served.mean()) <= 0.2 * abs(own - own_exact) and abs(own_exact - exact.mean()) <= 1e-5
    return 0 if agree else 1


def read_safetensors(path):
    raw = path.read_bytes()
    n = int.from_bytes(raw[:8], "little")
    kinds = {"F32": np.float32, "I32": np.int32}
    return {name: np.frombuffer(raw[8 + n + t["data_offsets"][0]:8 + n + t["data_offsets"][1]], kinds[t["dtype"]])
            .reshape(t["shape"]) for name, t in json.loads(raw[8:8 + n]).items() if name != "__metadata__"}


def export(model, folder, *options):
    """The GGUF file of a model, unquantized; None if the export is refused."""
    artifact, gguf = folder / "artifact", folder / f"{model.name}.gguf"
    subprocess.run([WKVQ, "convert", model, "-o", artifact, "-f", "-q", "--set", "weights.bits=16"], check=True,
                   capture_output=True)
    done = subprocess.run([WKVQ, "export", artifact, "--format", "gguf", "-o", gguf, "-q", *options], capture_output=True)
    if done.returncode:
        print(f"{model.name}: {done.stderr.decode().splitlines()[0]}")
    return None if done.returncode else gguf


CONTEXT_STEP = 256  # llama.cpp rounds a context up to a multiple


def keep_short_factors(gguf):
    """Puts the end of longrope's short factors at the least context that llama.cpp has, which is beyond a tiny model's."""
    data, key = gguf.read_bytes(), b"rope.scaling.original_context_length"
    at = data.find(key) + len(key) + 4  # behind the type
    if at >= len(key) + 4:
        gguf.write_bytes(data[:at] + CONTEXT_STEP.to_bytes(4, "little") + data[at + 4:])


def golden_error(model, folder):
    """The largest difference of a logit over the context that the file states, as a share of the largest logit; None
    if the export refuses the model."""
    gguf = export(model, folder, "--gguf-pre", "none")
    if not gguf:
        return None
    golden = read_safetensors(model / "golden.safetensors")
    if json.loads((model / "config.json").read_text())["model_type"] == "phi3":
        keep_short_factors(gguf)
    peer = Model(gguf, context=len(golden["ids"]), cache=GGML_F32)
    n = min(len(golden["ids"]), lc.llama_model_n_ctx_train(peer.model))
    want, have = golden["logits"][:n], peer.logits(golden["ids"].tolist()[:n])
    return float(np.abs(have - want).max() / np.abs(want).max())


def check_models(folder):
    bad = 0
    with tempfile.TemporaryDirectory() as work:
        for model in sorted(pathlib.Path(folder).iterdir()):
            error = golden_error(model, pathlib.Path(work))
            if error is not None:
                print(f"{model.name}: {error:.1e}")
                config = json.loads((model / "config.json").read_text())
                bad += not error <= MODEL_LIMIT[config.get("dtype") or config["torch_dtype"]]
    return 1 if bad else 0


# llama.cpp does not normalize text, and takes the names of special tokens for these tokens everywhere.
NAMES = ("<unk>", "<s>", "</s>", "<|im_", "[MASK]")


def check_tokenizers(folder):
    folder, bad = pathlib.Path(folder), 0
    texts = json.loads((folder / "texts.json").read_text())
    with tempfile.TemporaryDirectory() as work:
        for source in sorted(f for f in folder.iterdir() if f.is_dir()):
            model = pathlib.Path(work, source.name)
            tiny.make_model(model, num_hidden_layers=1, vocab_size=1500)
            (model / "tokenizer.json").unlink()
            shutil.copytree(source, model, ignore=shutil.ignore_patterns("cases.json"), dirs_exist_ok=True)
            gguf = export(model, pathlib.Path(work))
            if not gguf:
                continue
            peer = Model(gguf, vocab_only=True)
            cases = [(t, ids) for t, ids in zip(texts, json.loads((source / "cases.json").read_text())["ids"])
                     if unicodedata.is_normalized("NFC", t) and not any(n in t for n in NAMES)]
            wrong = [t for t, ids in cases if peer.tokens(t, special=True) != ids]
            print(f"{source.name}: {len(cases) - len(wrong)} of {len(cases)} texts have the same ids", *map(repr, wrong[:5]))
            bad += len(wrong)
    return 1 if bad else 0


SCRIPTS = {"ASCII": (0x20, 0x7e), "Latin": (0xa0, 0x17f), "Greek": (0x370, 0x3ff), "Cyrillic": (0x400, 0x4ff),
           "Hebrew": (0x590, 0x5ff), "Arabic": (0x600, 0x6ff), "Devanagari": (0x900, 0x97f), "Thai": (0xe00, 0xe7f),
           "punctuation": (0x2000, 0x206f), "symbols": (0x2190, 0x2bff), "kana": (0x3040, 0x30ff), "Han": (0x4e00, 0x9fff),
           "Hangul": (0xac00, 0xd7a3), "emoji": (0x1f300, 0x1f6ff)}


def random_text(rng, low, high):
    """Characters of one script among those that expressions look for."""
    text = "".join(rng.choice([" ", "\n", "a", "B", "1", ".", "'s"]) if rng.random() < 0.25 else chr(rng.randint(low, high))
                   for _ in range(rng.randrange(4, 40)))
    return unicodedata.normalize("NFC", "".join(c for c in text if unicodedata.category(c) != "Cn"))


def pairs_tokenizer(source):
    """The tokenizer's steps with every pair of bytes as a token: another end of a word moves the pairs behind it."""
    chars = tiny.byte_characters()
    one, pairs = [chars[b] for b in range(256)], [(chars[a], chars[b]) for a in range(256) for b in range(256)]
    vocab = {text: i for i, text in enumerate([*one, *("".join(p) for p in pairs)])}
    model = {**source["model"], "vocab": vocab, "merges": [list(p) for p in pairs], "ignore_merges": False}
    return {**source, "added_tokens": [], "normalizer": None, "post_processor": None, "model": model}


def same_words(source, work, texts, pre):
    """Prints how many texts of each kind have the reference's ids. Returns how many have not."""
    from tokenizers import Tokenizer
    model, bad = work / source.name, 0
    content = pairs_tokenizer(json.loads((source / "tokenizer.json").read_text()))
    tiny.make_model(model, num_hidden_layers=1, vocab_size=len(content["model"]["vocab"]), hidden_size=32)
    (model / "tokenizer.json").write_text(json.dumps(content))
    gguf = export(model, work, *(["--gguf-pre", pre] if pre else []))
    if not gguf:
        return 0
    peer, reference = Model(gguf, vocab_only=True), Tokenizer.from_file(str(model / "tokenizer.json"))
    for kind, list_ in texts.items():
        wrong = [t for t in list_ if peer.tokens(t) != reference.encode(t, add_special_tokens=False).ids]
        if wrong:
            print(f"{source.name}: {kind}: {len(wrong)} of {len(list_)} texts have other ids,", *map(repr, wrong[:2]))
        bad += len(wrong)
    print(f"{source.name}: {bad} of {sum(map(len, texts.values()))} texts have other ids")
    return bad


def check_words(folder, *names):
    folder, rng = pathlib.Path(folder), random.Random(5)
    texts = {"awkward": [t for t in json.loads((folder / "texts.json").read_text()) if t]}
    for kind, (low, high) in SCRIPTS.items():
        texts[kind] = [t for t in (random_text(rng, low, high) for _ in range(200)) if t]
    chosen = dict(n.split("=") for n in names)
    bad = 0
    with tempfile.TemporaryDirectory() as work:
        for source in sorted(folder.iterdir()):
            file = source / "tokenizer.json"
            if file.exists() and b'"ByteLevel"' in file.read_bytes() and (not chosen or source.name in chosen):
                bad += same_words(source, pathlib.Path(work), texts, chosen.get(source.name))
    return 1 if bad else 0


if __name__ == "__main__":
    job = {"tokenizers": check_tokenizers, "words": check_words, "models": check_models, "tokens": check_tokens, "generate": generate,
           "perplexity": perplexity, "cache": check_cache}.get("".join(sys.argv[1:2]))
    sys.exit(job(*sys.argv[2:]) if job else __doc__)
