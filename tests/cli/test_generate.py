#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Text from the packed runtime: test_generate.py WKVQ DEMO_DIR.

Stop strings compared with the text without them; sampling by seed; the reported time and cache size."""
import json
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import harness
import tiny

PROMPT, TOKENS = "The ", 40


class Bench(harness.Bench):
    decode = False

    def __init__(self, wkvq, demo, folder):
        super().__init__(wkvq, folder)
        self.demo = pathlib.Path(demo).resolve()
        self.run("convert", self.demo, "-o", "demo")
        self.text = self.generate()[0]

    def generate(self, *more, model="demo"):
        """Returns stdout without the newline that is added, and stderr."""
        done = self.run("generate", model, "-p", PROMPT, "-n", TOKENS, *more)
        assert done.stdout.endswith(b"\n"), done.stdout
        return done.stdout[:-1], done.stderr.decode()


def without(text, *stops):
    """Returns text up to the first stop string."""
    return text[:min([len(text)] + [at for at in map(text.find, stops) if at >= 0])]


def test_stop_anywhere(b):
    """Stop strings taken from the text itself, of several lengths, across any tokens."""
    assert len(b.text) > 60, b.text
    for at in range(3, len(b.text) - 12, 9):
        for length in (1, 2, 7, 12):
            stop = b.text[at:at + length]
            got, _ = b.generate("--stop", stop.decode())
            assert got == without(b.text, stop), (stop, got)


def test_several_stops(b):
    stops = [b.text[30:36], b.text[20:24] + b"\x01", b.text[40:45]]
    args = [word for s in stops for word in ("--stop", s.decode())]
    assert b.generate(*args)[0] == without(b.text, *stops)
    got = json.loads(b.run("generate", "demo", "-p", PROMPT, "-n", TOKENS, "--json", *args).stdout)
    assert got["text"].encode() == without(b.text, *stops) and got["finish_reason"] == "stop", got
    assert 0 < got["tokens"] == len(got["ids"]) < TOKENS, got


def test_stop_that_never_ends(b):
    """A possible beginning of a stop string is held back, and shown at the end."""
    tail = b.text[-3:].decode()
    assert b.generate("--stop", tail + "\x01")[0] == b.text


def test_characters_in_pieces(b):
    """A tokenizer of bytes: the tokens of one character arrive one by one, and a stop string ends between two."""
    tiny.make_model(b.path / "bytes")
    b.run("convert", "bytes", "-o", "tiny")
    for seed in range(100):  # until one does not end soon and has a character of several bytes
        sample = ("--temperature", "3", "--seed", str(seed))
        whole = json.loads(b.run("generate", "tiny", "-p", "x", "-n", 60, "--json", *sample).stdout)
        text = whole["text"]
        if len(whole["ids"]) > 30 and any(0x80 <= ord(c) < 0xFFFD for c in text):
            break
    else:
        raise AssertionError("no seed has one")
    for stop in (text[i:i + n] for i in range(0, len(text) - 3, 3) for n in (1, 2)):
        if "\0" in stop:
            continue
        got = b.run("generate", "tiny", "-p", "x", "-n", 60, *sample, "--stop", stop).stdout
        assert got == text[:text.find(stop)].encode() + b"\n", (stop, got, text)


def test_seed(b):
    """The same seed gives the same text, another seed another. top-k 1 and temperature 0 choose the likeliest tokens."""
    warm = ("--temperature", "1.5", "--seed")
    assert b.generate(*warm, 1)[0] == b.generate(*warm, 1)[0] != b.generate(*warm, 2)[0]
    assert b.generate("--temperature", "2", "--top-k", 1)[0] == b.text
    assert b.generate("--temperature", "2", "--top-p", 0)[0] == b.text


def test_what_is_told(b):
    said = b.generate()[1]
    told = re.search(r"(\d+) tokens of prompt, the first token after (\S+) s; (\d+) tokens, (\S+) per second after the first", said)
    assert told and int(told[3]) == TOKENS and float(told[2]) >= 0 and float(told[4]) > 0, said
    assert "cache" not in said and not b.generate("-q")[1]
    got = json.loads(b.run("generate", "demo", "-p", PROMPT, "-n", TOKENS, "--json").stdout)
    assert got["finish_reason"] == "length" and got["tokens"] == TOKENS, got
    assert 0 < got["prompt_seconds"] <= got["first_token_seconds"] <= got["prompt_seconds"] + got["seconds"], got
    assert got["tokens_per_second"] > 0, got


def test_cache(b):
    """4 bits and an fp16 pair per group, as allocated: heads of 64 in groups of 64, 32 and 16."""
    arch = json.loads((b.demo / "config.json").read_text())
    elements = 2 * arch["num_hidden_layers"] * arch["num_key_value_heads"] * arch["head_dim"]
    for group in (64, 32, 16):
        b.run("convert", b.demo, "-o", f"kv{group}", "--set", f"kv.group_size={group}")
        bits = 4 + 32 / group
        assert f", {bits:.3f} bits per element" in b.generate("--stats", model=f"kv{group}")[1], group
        got = json.loads(b.run("generate", f"kv{group}", "-p", PROMPT, "-n", 8, "--json").stdout)
        tokens = got["prompt_tokens"] + 8
        assert got["kv_bits"] == bits and got["kv_bytes"] == tokens * elements * bits / 8, got


def test_prompt_from_elsewhere(b):
    """Standard input and a file give the text of -p, without the last line end; JSON has the prompt itself."""
    prompt, out = "The\n two  ", []
    (b.path / "p.txt").write_bytes(prompt.encode() + b"\r\n")
    for args in (("-p", prompt), ("-p", "-"), ("--prompt-file", "p.txt"), ("--prompt-file", "-")):
        done = b.run("generate", "demo", *args, "-n", 9, "--json", stdin=prompt.encode() + b"\n")
        out.append(json.loads(done.stdout))
    assert all(o["ids"] == out[0]["ids"] and o["prompt"] == prompt for o in out), out


def test_checkpoint(b):
    """A checkpoint runs as an artifact of 16 bits does, whose tensors have the same values."""
    b.run("convert", b.demo, "-o", "full", "--set", "weights.bits=16", "--set", "kv.bits=16")
    plain = b.generate(model=b.demo)[0]
    assert plain == b.generate(model="full")[0] != b.text, plain
    got = json.loads(b.run("generate", b.demo, "-p", PROMPT, "-n", 3, "--json").stdout)
    assert got["kv_bits"] == json.loads(b.run("generate", "full", "-p", PROMPT, "-n", 3, "--json").stdout)["kv_bits"], got


def test_too_long(b):
    """Generation stops at the end of the model's context."""
    length = json.loads((b.demo / "config.json").read_text())["max_position_embeddings"]
    done = b.run("generate", "demo", "-p", PROMPT, "-n", length, want=2)
    assert not done.stdout and b"prompt and --n-tokens" in done.stderr and str(length).encode() in done.stderr, done.stderr


if __name__ == "__main__":
    harness.main(globals(), Bench, arguments=2)
