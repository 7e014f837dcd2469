#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Output for programs: test_output.py WKVQ SOURCE_DIR.

docs/output.md names every member that --json and --log-json print, and no other."""
import json
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import harness
import tiny

SMALL = ["-j1", "-q", *harness.words(["calibration.samples=2", "calibration.seqlen=32", "calibration.epochs=1", "crr.blocks=0",
                                      "refine.samples=2", "refine.seqlen=32", "refine.guard=1"])]
TEXT = ["--data", "text.txt"]
COMMANDS = {
    "verify": ["verify", "out", "--against", "model", *TEXT, "--ctx", "64", "--logit-tokens", "16", "-q"],
    "quantize": ["quantize", "model", *TEXT, "-o", "again", *SMALL],
    "calibrate": ["calibrate", "model", *TEXT, "-o", "state", *SMALL],
    "calibrate --plan": ["calibrate", "--plan", "--shape", "smollm2-135m"],
    "convert": ["convert", "model", "-o", "rounded", "-q"],
    "export": ["export", "out", "--format", "dense", "--kv", "drop", "--plan"],
    "eval": ["eval", "out", *TEXT, "--windows", "2", "--ctx", "64", "-q"],
    "tune": ["tune", "model", *TEXT, "--eval", "text.txt", "--max-bits", "5", "--uniform", "--samples", "2", "--seqlen", "32", "--ctx", "32",
             "--windows", "2", "--set", "calibration.epochs=1", "-o", "tuned.yaml", "-j1", "-q"],
    "generate": ["generate", "out", "-p", "ab", "-n", "2"],
    "inspect": ["inspect", "out"],
}


class Output(harness.Bench):
    def __init__(self, wkvq, root, folder):
        super().__init__(wkvq, folder)
        page = (pathlib.Path(root) / "docs" / "output.md").read_text()
        self.tables = page.split("\n## ")[1:]
        tiny.make_model(self.path / "model")
        tiny.make_text(self.path / "text.txt", 500)
        self.run("quantize", "model", *TEXT, "-o", "out", "--log-json", "log.jsonl", *SMALL)


def rows(table):
    """{first column: words in backticks of the last one}, in which an empty first column continues the row above."""
    found, name = {}, None
    for line in re.findall(r"^\| (?!---)(.*) \|$", table, re.M)[1:]:
        first, *_, last = line.split(" | ") if not line.startswith("|") else ["", line[1:]]
        name = first.strip() or name
        found.setdefault(name, set()).update(re.findall(r"`([^`]+)`", last))
    return found


def names(value):
    """Keys of a JSON value, at any depth, and its texts."""
    if isinstance(value, dict):
        return set(value).union(*(names(v) for v in value.values()))
    if isinstance(value, list):
        return set().union(*(names(v) for v in value))
    return {value} if isinstance(value, str) else set()


def test_json(o):
    told = {name.strip("`"): words for name, words in rows(o.tables[0]).items()}
    assert set(told) == set(COMMANDS), set(told) ^ set(COMMANDS)
    told["quantize"] = told["quantize"] - {"verify"} | told["verify"]
    values = {"pass", "FAIL", "skipped", "carried", "changed", "dropped"}
    for name, command in COMMANDS.items():
        shown = json.loads(o.run(*command, "--json").stdout)
        if isinstance(shown, list):
            assert len({tuple(one) for one in shown}) == 1, (name, shown)
            shown = shown[0]
        assert set(shown) <= told[name], (name, "not told", set(shown) - told[name])
        extra = told[name] - names(shown) - values
        assert not extra, (name, "not printed", extra)


def test_outcomes(o):
    """Of a part of the verification."""
    told = rows(o.tables[0])["`verify`"]
    tiny.make_model(o.path / "other", 8)
    failed = json.loads(o.run("verify", "out", "--against", "other", "--json", want=None).stdout)
    assert {"pass", "FAIL"} <= set(failed["parts"].values()) <= told, failed


def test_log(o):
    told = {}
    table = rows(o.tables[1])
    for name, words in table.items():
        for event in re.findall(r"`(\w+)`", name):
            told[event] = words
    told["epoch"] = told["step"]
    told["block"] = told["block"] | told["step"]
    seen = {}
    for line in (o.path / "log.jsonl").read_text().splitlines():
        shown = json.loads(line)
        seen.setdefault(shown["event"], set()).update(set(shown) - {"time", "event"})
    assert set(seen) == set(told), set(seen) ^ set(told)
    for event, members in seen.items():
        assert members == told[event], (event, members ^ told[event])


if __name__ == "__main__":
    harness.main(globals(), Output, arguments=2)
