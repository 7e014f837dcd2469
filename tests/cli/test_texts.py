#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Calibration on several texts with shares, on a tiny model whose tokens are bytes: test_texts.py WKVQ [TEST...]."""
import json
import pathlib
import shutil
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import harness
import tiny

L, N = 32, 12
RECIPE = [f"calibration.samples={N}", f"calibration.seqlen={L}", "calibration.epochs=1", "weights.group_size=12",
          "kv.group_size=8", "crr.blocks=0"]
YAML = "calibration:\n  data:\n    - {file: prose.txt, share: 0.5}\n    - file: code.txt\n      share: 0.25\n    - {file: rows.jsonl, share: 0.25}\n"
COUNTS = [6, 3, 3]
SWEEP = """
base: {calibration: {samples: 12, seqlen: 32, epochs: 1}, weights.group_size: 12, kv.group_size: 8, crr.blocks: 0}
grid: {weights.bits: [3, 4]}
eval: {data: eval.txt, windows: 2, ctx: 32}
"""


class Fixture(harness.Bench):
    def __init__(self, wkvq, folder):
        super().__init__(wkvq, folder)
        tiny.make_model(self.path / "model", num_hidden_layers=2)
        self.size = {}
        for name, letter, n in (("prose.txt", "p", 900), ("code.txt", "c", 500)):
            # Numbered, so that windows differ; a window's letters tell its text.
            text = "".join(f"{letter}{i % 10}" for i in range(n))
            (self.path / name).write_text(text)
        rows = [{"text": "".join(f"r{(i + k) % 10}" for i in range(60))} for k in range(5)]
        (self.path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        tiny.make_text(self.path / "eval.txt", 200)
        (self.path / "mix.yaml").write_text(YAML)
        (self.path / "s.yaml").write_text(SWEEP)

    def calibrate(self, out, *more, want=0):
        sets = [w for pair in RECIPE for w in ("--set", pair)]
        return self.run("calibrate", "model", "-o", out, "-j1", *sets, *more, want=want)

    def text_of(self, state):
        return json.loads((self.path / state / "manifest.json").read_text())["identity"]["text"]

    def files(self, name):
        return {f.name: f.read_bytes() for f in sorted((self.path / name).iterdir())}

    def blocks(self, name):
        return {k: v for k, v in self.files(name).items() if k.startswith("block-")}

    def artifact(self):
        """Makes an artifact of three texts, unless it is there."""
        if not (self.path / "artifact").exists():
            sets = [w for pair in RECIPE for w in ("--set", pair)]
            self.run("quantize", "model", *SHARED, "-o", "artifact", "-j1", *sets)
        return self.path / "artifact"

    def reference(self):
        if not (self.path / "reference").exists():
            self.calibrate("reference", "-c", "mix.yaml")
        return self.text_of("reference")


SPLIT = str(pathlib.Path(__file__).resolve().parents[2] / "tools" / "peers" / "split.py")
SHARED = ["--data", "prose.txt:0.5", "--data", "code.txt:0.25", "--data", "rows.jsonl:0.25"]


def test_windows_lie_in_their_texts(f):
    """As many windows as the shares say, none across texts, and each first part of them in proportion."""
    text = f.reference()
    assert [t["share"] for t in text["texts"]] == [0.5, 0.25, 0.25], text["texts"]
    sizes = [t["tokens"] for t in text["texts"]]
    assert sum(sizes) == text["tokens"] and len({t["crc32"] for t in text["texts"]}) == 3, text["texts"]
    begin = [0, sizes[0], sizes[0] + sizes[1]]
    whose = []
    for at in text["windows"]:
        t = max(i for i in range(3) if at >= begin[i])
        assert at + L <= begin[t] + sizes[t], (at, t)
        whose.append(t)
    assert [whose.count(t) for t in range(3)] == COUNTS, whose
    for n in range(4, N + 1, 4):
        assert [whose[:n].count(t) for t in range(3)] == [n // 2, n // 4, n // 4], whose


def test_each_text_is_tokenized_by_itself(f):
    """Rows are joined as ever, and every text has the same tokens as alone."""
    text = f.reference()
    for i, name in enumerate(("prose.txt", "code.txt", "rows.jsonl")):
        if not (f.path / f"alone-{i}").exists():
            f.calibrate(f"alone-{i}", "--data", name)
        alone = f.text_of(f"alone-{i}")
        assert "texts" not in alone, alone
        assert [alone[k] for k in ("tokens", "crc32")] == [text["texts"][i][k] for k in ("tokens", "crc32")]


def test_the_command_line_says_the_same(f):
    f.reference()
    done = f.calibrate("typed", *SHARED)
    assert "code.txt: 3 of 12 windows" in done.stderr, done.stderr
    assert f.files("typed") == f.files("reference")


def test_one_text_with_a_share_is_that_text(f):
    """Same windows and results as without the share; only the identity says that there is one."""
    f.calibrate("plain", "--data", "prose.txt")
    f.calibrate("share", "--data", "prose.txt:3")
    plain, share = f.text_of("plain"), f.text_of("share")
    assert plain["windows"] == share["windows"] and "texts" not in plain
    assert share["texts"] == [{"tokens": plain["tokens"], "crc32": plain["crc32"], "share": 3.0}], share
    assert f.blocks("plain") == f.blocks("share")


def test_a_file_may_be_named_like_a_share(f):
    shutil.copy(f.path / "prose.txt", f.path / "prose:1")
    f.calibrate("named", "--data", "prose:1")
    f.calibrate("plain", "--data", "prose.txt")
    assert f.files("named") == f.files("plain")


def test_another_mix_is_refused(f):
    f.reference()
    done = f.calibrate("reference", "--data", "prose.txt:0.5", "--data", "code.txt:0.3", "--data", "rows.jsonl:0.2", want=2)
    assert "text.texts.1.share is 0.25 in the state and 0.3 in this run" in done.stderr, done.stderr
    done = f.calibrate("reference", "--data", "prose.txt", want=2)
    assert "this state belongs to another run: text." in done.stderr, done.stderr
    text = (f.path / "code.txt").read_text()
    (f.path / "code.txt").write_text(text.replace("c1", "d1"))
    done = f.calibrate("reference", *SHARED, want=2)
    assert "this state belongs to another run: text.crc32 is" in done.stderr, done.stderr
    (f.path / "code.txt").write_text(text)
    f.calibrate("reference", *SHARED)


def test_the_plan_has_the_counts(f):
    more = [*SHARED, "--plan"]
    text = f.calibrate("planned", *more).stdout
    assert "6 of prose.txt (share 0.5, 1800 tokens)" in text and "3 of code.txt (share 0.25, 1000 tokens)" in text, text
    sets = [w for pair in RECIPE for w in ("--set", pair)]
    done = f.run("quantize", "model", "-o", "planned", "-j1", *sets, *more, "--json")
    texts = json.loads(done.stdout)["texts"]
    assert [t["windows"] for t in texts] == COUNTS and texts[2]["file"] == "rows.jsonl", texts
    assert not (f.path / "planned").exists()
    assert "texts" not in json.loads(f.run("quantize", "model", "-o", "planned", "-j1", *sets, "--data",
                                           "prose.txt", "--plan", "--json").stdout)


def test_a_small_text_is_told(f):
    """Windows of a text may overlap; a text without room for one is an error, unless it gives none."""
    (f.path / "small.txt").write_text("s" * 50)
    done = f.calibrate("small", "--data", "prose.txt:0.5", "--data", "small.txt:0.5")
    assert "small.txt: has 50 tokens, so its 6 windows of 32 overlap" in done.stderr, done.stderr
    (f.path / "tiny.txt").write_text("t" * L)
    done = f.calibrate("tiny", "--data", "prose.txt:0.5", "--data", "tiny.txt:0.5", want=2)
    assert "tiny.txt has 32 tokens, and windows of 32 need" in done.stderr, done.stderr
    assert not (f.path / "tiny").exists()
    f.calibrate("tiny", "--data", "prose.txt:1", "--data", "tiny.txt:0.001")


def test_the_artifact_names_its_texts(f):
    """quantize converts and verifies on such texts too, and the artifact records them."""
    text = json.loads((f.artifact() / "manifest.json").read_text())["provenance"]["text"]
    assert text == f.reference(), text


def test_whole_texts_have_no_shares(f):
    f.artifact()
    for command in (["eval", "model"], ["verify", "artifact"], ["eval", "model", "--task", "zeroshot"]):
        done = f.run(*command, "--data", "prose.txt:0.5", want=2)
        assert "'prose.txt' has a share, but" in done.stderr and "whole texts" in done.stderr, done.stderr


def test_a_sweep_reads_texts_once(f):
    """Both cells share the tokens, each state has its shares, and the command reproduces them."""
    command = [f.wkvq, "sweep", "s.yaml", "-m", "model", "-o", "swept", "-j1", *SHARED]
    done = f.call(command)
    assert done.stderr.count("text: ") == 4, done.stderr  # three to calibrate on, one to evaluate on
    rows = [json.loads(line) for line in (f.path / "swept" / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    for row in rows:
        assert row["identity"]["text"]["texts"] == f.reference()["texts"], row["identity"]
        assert "--data prose.txt:0.5 --data code.txt:0.25 --data rows.jsonl:0.25" in row["command"], row["command"]
    other = [*command[:-6], "--data", "prose.txt:0.5", "--data", "code.txt:0.5", "--data", "rows.jsonl:0.1"]
    f.call(other)
    rows = [json.loads(line) for line in (f.path / "swept" / "results.jsonl").read_text().splitlines()]
    assert len({r["hash"] for r in rows}) == 4, "cells of another mix are others"


def test_split_keeps_documents_apart(f):
    """tools/peers/split.py: no document on both sides, also if several rows have it, and all of them on one."""
    names = [f"document {i} " * 20 for i in range(9)]
    rows = [{"context": t, "input": k} for k in range(3) for t in names]
    (f.path / "task.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    def halves(out):
        return [[json.loads(line)["text"] for line in (f.path / f"{out}.{side}.jsonl").read_text().splitlines()]
                for side in ("train", "test")]
    f.call([sys.executable, SPLIT, "task.jsonl", "context", "0.3", "half"])
    train, test = halves("half")
    assert len(test) == 3 and sorted(train + test) == sorted(names), (train, test)
    (f.path / "task.jsonl").write_text("".join(json.dumps(r) + "\n" for r in reversed(rows[9:])))
    f.call([sys.executable, SPLIT, "task.jsonl", "context", "0.3", "again"])
    assert halves("again") == [train, test], "the split depends on the order of rows"
    done = f.run("eval", "model", "--data", "half.test.jsonl", "--ctx", "32", "--json")
    whole = f.run("eval", "model", "--data", "task.jsonl", "--text-field", "context", "--ctx", "32", "--json")
    tokens = [json.loads(d.stdout)["text_tokens"] for d in (done, whole)]
    assert tokens == [sum(map(len, test)) + 4, 2 * sum(map(len, names)) + 2 * 17], tokens  # "\n\n" between rows


def test_split_refuses(f):
    (f.path / "bad.jsonl").write_text('{"text": "a"}\n{"text": 3}\n')
    (f.path / "one.jsonl").write_text('{"text": "a"}\n{"text": "a"}\n')
    (f.path / "two.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    for args, want in ((["bad.jsonl", "text", "0.5", "x"], "bad.jsonl: line 2: no text in field 'text'"),
                       (["one.jsonl", "text", "0.5", "x"], "1 distinct documents in field 'text'; a split needs two"),
                       (["none.jsonl", "text", "0.5", "x"], "none.jsonl: cannot be read"),
                       (["two.jsonl", "text", "0.5", "none/x"], "none/x: cannot be written"),
                       (["one.jsonl", "text", "2", "x"], "SHARE is '2'"), (["one.jsonl"], "want FILE.jsonl")):
        done = f.call([sys.executable, SPLIT, *args], want=2)
        assert want in done.stderr, done.stderr
        assert not list(f.path.glob("x.*")), "half a split"


if __name__ == "__main__":
    harness.main(globals(), Fixture)
