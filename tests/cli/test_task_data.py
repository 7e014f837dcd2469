#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""`wkvq eval` against lm-evaluation-harness and LongBench: test_task_data.py WKVQ GOLDEN [TEST...].

GOLDEN is tests/golden/tasks.json: the harness' texts, as checksums, of questions that stand there. The published data
sets are no part of this tree. Where WKVQ_TASK_DATA names a folder with them (PIQA, ARC-Challenge, HellaSwag,
WinoGrande, LongBench), some of their questions are compared, too; else that part does not run (exit 77)."""
import json
import os
import pathlib
import struct
import sys
import zlib

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import harness
import tiny

# What LongBench's own metrics.py and eval.py give for the answers in LongBench/pred, in percent.
SCORES = {"qasper": 11.36, "2wikimqa": 7.99, "hotpotqa": 7.44, "multifieldqa_en": 23.33, "triviaqa": 83.93,
          "lcc": 69.58}
LONG_CTX = 300


class Fixture(harness.Bench):
    def __init__(self, wkvq, golden, folder):
        super().__init__(wkvq, folder)
        self.golden = json.loads(pathlib.Path(golden).read_text())
        tiny.make_model(self.path / "model", num_hidden_layers=1, max_position_embeddings=4096)

    @property
    def data(self):
        """The folder of the published sets."""
        if not os.environ.get("WKVQ_TASK_DATA"):
            raise harness.Skip("WKVQ_TASK_DATA is not set")
        return pathlib.Path(os.environ["WKVQ_TASK_DATA"])

    def evaluate(self, *args):
        return json.loads(self.run("eval", *args, "--json", "-q").stdout)

    def zeroshot(self, want, *args):
        """Compares the questions of a file with golden ones."""
        (self.path / "lines.jsonl").unlink(missing_ok=True)
        result = self.evaluate("model", "--task", "zeroshot", "--ctx", "4096", "-o", "lines.jsonl", *args)
        rows = [json.loads(line) for line in (self.path / "lines.jsonl").read_text().splitlines()]
        got = [row["crc32"] for row in rows]
        wrong = [row["question"] for row, crc in zip(rows, want["crc32"], strict=True) if row["crc32"] != crc]
        assert not wrong, (args, "questions", wrong, got)
        if want["chars"]:
            assert [row["chars"] for row in rows] == want["chars"], args
        return result["sets"][0], rows


def test_own_rows(f):
    """Questions of our own, worded as the harness words them."""
    for name, want in f.golden["own"].items():
        path = f.path / (name + ".jsonl")
        path.write_text("".join(json.dumps(row) + "\n" for row in want["rows"]))
        got, _ = f.zeroshot(want, "--data", path.name)
        assert got["set"] == name, got


def test_published(f):
    """Questions of the published files, evenly from each."""
    for file, want in f.golden["data"].items():
        got, rows = f.zeroshot(want, "--data", str(f.data / file), "--limit", str(f.golden["limit"]))
        assert got["set"] == want["set"] and got["rows"] == want["rows"], got
        assert [r["question"] for r in rows] == [i * got["rows"] // got["n"] for i in range(got["n"])], file


def test_published_labels(f):
    """PIQA as published, with its labels beside it, is the hub's file."""
    want = f.golden["data"]["PIQA/validation.hf.jsonl"]
    f.zeroshot(want, "--data", str(f.data / "PIQA/dev.jsonl"), "--labels", str(f.data / "PIQA/dev-labels.lst"),
               "--limit", str(f.golden["limit"]))


def test_predictions(f):
    """LongBench's scores of published answers."""
    given = [w for name in SCORES for w in ("--predictions", str(f.data / f"LongBench/pred/{name}.jsonl"))]
    r = f.evaluate("--task", "longbench", *given)
    for entry in r["sets"]:
        assert round(entry["score"], 2) == SCORES[entry["set"]], entry
    assert abs(r["average"]["score"] - sum(SCORES.values()) / 6) <= 0.01, r["average"]


def long_prompt(form, row):
    """The prompt's bytes as tokens, and whether its middle is cut, as LongBench's pred.py does."""
    ids = form.format(**row).encode()
    if len(ids) <= LONG_CTX:
        return ids, False
    half = LONG_CTX // 2
    ends = ids[:half].decode(errors="replace") + ids[-half:].decode(errors="replace")
    return ends.encode(), True


def test_prompts(f):
    """LongBench's prompts, cut in the middle."""
    config = f.data / "LongBench/config"
    forms, lengths = (json.loads((config / n).read_text()) for n in ("dataset2prompt.json", "dataset2maxlen.json"))
    short = {name: min(n, 3) for name, n in lengths.items()}
    (f.path / "lengths.json").write_text(json.dumps(short))
    for name in SCORES:
        path = f.data / f"LongBench/{name}.jsonl"
        f.evaluate("model", "--task", "longbench", "--data", str(path), "--prompts", str(config / "dataset2prompt.json"),
                   "--max-gen", "lengths.json", "--ctx", str(LONG_CTX), "-o", name + ".out")
        lines = [json.loads(line) for line in (f.path / (name + ".out")).read_text().splitlines()]
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for row, line in zip(rows, lines, strict=True):
            ids, cut = long_prompt(forms[name], row)
            asked = b"".join(struct.pack("<i", i) for i in ids) + str(short[name]).encode()
            asked += json.dumps(row["answers"], ensure_ascii=False).encode()
            assert line["crc32"] == f"{zlib.crc32(asked):08x}" and line["cut"] == cut, (name, line["question"])
            assert [line[k] for k in ("answers", "all_classes", "length")] == [
                row[k] for k in ("answers", "all_classes", "length")], line


if __name__ == "__main__":
    harness.main(globals(), Fixture, arguments=2)
