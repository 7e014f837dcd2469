#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Sweeps and reports on a tiny model: test_sweep.py WKVQ [TEST...]."""
import calendar
import csv
import json
import math
import pathlib
import shlex
import shutil
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import harness
import tiny

EVIL = "a <b>&amp; \"quoted\" 'cell'"
SWEEP = f"""
base:
  calibration: {{samples: 8, seqlen: 64, epochs: 2}}
  weights.group_size: 12
  kv.group_size: 8
  crr.blocks: 1
cells:
  - {{name: full method}}
  - name: {json.dumps(EVIL)}
    set: {{weights: {{method: rtn}}, kv.method: token}}
  - {{name: plain, set: {{weights.bits: 16, kv.bits: 16}}}}
eval: {{data: eval.txt, windows: 4, ctx: 64}}
"""


class Fixture(harness.Bench):
    def __init__(self, wkvq, folder):
        super().__init__(wkvq, folder)
        tiny.make_model(self.path / "model", num_hidden_layers=3)
        tiny.make_text(self.path / "text.txt", 2000)
        tiny.make_text(self.path / "eval.txt", 700)
        (self.path / "s.yaml").write_text(SWEEP)

    def command(self, out, *more, file="s.yaml"):
        return [self.wkvq, "sweep", file, "-m", "model", "--data", "text.txt", "-o", out, "-j1", *more]

    def rows(self, out):
        text = (self.path / out / "results.jsonl").read_text()
        assert text.endswith("\n"), "half a line"
        return [json.loads(line) for line in text.splitlines()]

    def reference(self):
        if not (self.path / "reference").exists():
            began = time.monotonic()
            self.call(self.command("reference"))
            self.seconds = time.monotonic() - began
        return {r["name"]: r for r in self.rows("reference")}


def figures(row):
    """Returns the part of a result that interruptions of a cell must not change."""
    return {k: v for k, v in row.items() if k not in ("seconds", "calibrate_seconds", "run")}


def close(a, b):
    return abs(a - b) <= 1e-6 * abs(b)


def test_results(f):
    rows = f.reference()
    assert list(rows) == ["full method", EVIL, "plain"], list(rows)
    full, rtn, plain = rows.values()
    for r in rows.values():
        assert len(r["window_nll"]) == 4, r["window_nll"]
        assert close(r["ppl"], math.exp(statistics.mean(r["window_nll"])))
        assert close(r["stderr"], r["ppl"] * statistics.stdev(r["window_nll"]) / 2)
    assert rtn["set"] == ["weights.method=rtn", "kv.method=token"], rtn["set"]
    assert rtn["identity"]["config"]["weights"]["method"] == "rtn"
    assert len(full["blocks"]) == 3 and not rtn["blocks"] and not plain["blocks"]
    assert all(len(b["epochs"]) == 2 and b["best"] <= b["start"] for b in full["blocks"])
    assert len(full["k_cosine"]) == len(full["v_cosine"]) == 3
    assert close(min(full["k_cosine"]), full["verify"]["worst_k_cosine"]), full["k_cosine"]
    assert full["verified"] and rtn["verified"]
    assert 4 < full["weight_bits"] < 8 and plain["weight_bits"] == plain["kv_bits"] == 16
    left = [p.name for p in (f.path / "reference" / "cells").iterdir()]
    assert not left, left
    with open(f.path / "reference" / "results.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [t["name"] for t in table] == list(rows)
    assert all(close(float(t["ppl"]), rows[t["name"]]["ppl"]) for t in table)
    assert [t["hash"] for t in table] == [row["hash"] for row in rows.values()]


def test_what_was_run(f):
    """Each result says when, by what and on what; sweep.json has the command and the order of the cells."""
    for name, row in f.reference().items():
        run, began = row["run"], time.strptime(row["run"]["finished"], "%Y-%m-%dT%H:%M:%SZ")
        assert 0 <= time.time() - calendar.timegm(began) < 3600, run
        assert run["version"] in subprocess.check_output([f.wkvq, "--version"], text=True), run
        assert run["machine"] and run["cores"] == 1 and run["device"] == "cpu" and run["model"] == "model", run
        assert run["data"] == ([] if name == "plain" else ["text.txt"]) and run["eval"] == ["eval.txt"], run
    about = json.loads((f.path / "reference/sweep.json").read_text())
    # the parser moves operands behind options
    assert sorted(shlex.split(about["command"])) == sorted(["wkvq", *f.command("reference")[1:]]), about
    want = [{key: row[key] for key in ("name", "hash", "spec", "set")} for row in f.reference().values()]
    assert about["cells"] == want and "title" not in about, about


def test_memory_from_shapes(f):
    """12 * 4 values in each of 2 * 3 rows of a token's cache."""
    full, _, plain = f.reference().values()
    config = json.loads((f.path / "model/config.json").read_text())
    width = config["num_key_value_heads"] * config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    elements = 2 * config["num_hidden_layers"] * width
    for row in (full, plain):
        assert close(row["memory"]["cache_token"], row["kv_bits"] * elements / 8), row["memory"]
    assert plain["memory"]["paper_cache_token"] == 2 * elements
    # 16 bits a weight, where the checkpoint has 32 and a header
    share = 2 * plain["memory"]["weights"] / plain["bytes"]
    assert 0.95 < share < 1, share


def test_finished_cells_do_not_run_again(f):
    f.reference()
    before = (f.path / "reference" / "results.jsonl").read_bytes()
    done = f.call(f.command("reference"))
    assert "cell 1 of" not in done.stderr, done.stderr
    assert (f.path / "reference" / "results.jsonl").read_bytes() == before
    plan = f.call(f.command("reference", "--plan")).stdout.splitlines()
    assert len(plan) == 3 and all(line.startswith("done") for line in plan), plan
    plan = json.loads(f.call(f.command("reference", "--plan", "--json")).stdout)
    assert [(c["cell"], c["status"]) for c in plan] == [(i, "done") for i in (1, 2, 3)], plan
    assert all(c[key] is None for c in plan for key in ("blocks", "measures", "message")), plan
    assert json.loads(f.call(f.command("reference", "--print-cells", "--json")).stdout) == []
    todo = json.loads(f.call(f.command("reference", "--print-cells", "--json", "--set", "calibration.epochs=1")).stdout)
    assert [c["status"] for c in todo] == ["to do"] * 3 and all(c["hash"] and c["name"] for c in todo), todo


def test_plan_of_a_failure(f):
    """The first line of a cell's message; a byte that is not UTF-8, which a file's name may have, is replaced."""
    cells = f.path / "shown" / "cells"
    cells.mkdir(parents=True)
    (f.path / "shown" / "lock").touch()
    first, second, third = json.loads(f.call(f.command("shown", "--plan", "--json")).stdout)
    (cells / (second["hash"] + ".failed")).write_bytes(b"part-\xff.txt: no such file\nmore")
    want = [first, {**second, "status": "failed", "message": "part-\ufffd.txt: no such file"}, third]
    for option in ("--plan", "--print-cells"):
        assert json.loads(f.call(f.command("shown", option, "--json")).stdout) == want, option
    line = f.call(f.command("shown", "--plan")).stdout.splitlines()[1]
    assert line == f"failed   {second['hash']}  {EVIL}: {want[1]['message']}", line
    assert first["status"] == third["status"] == "to do" and first["message"] is None, first


def test_other_text_is_another_cell(f):
    f.reference()
    tiny.make_text(f.path / "other.txt", 1500)
    plan = f.call([*f.command("reference", "--plan"), "--data", "other.txt"]).stdout
    assert [line.split()[0] for line in plan.splitlines()] == ["to", "to", "done"], plan
    plan = f.call(f.command("reference", "--plan", "--set", "calibration.epochs=1")).stdout
    assert "done" not in plan, plan


def test_killed_and_resumed(f):
    want = f.reference()
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        process = subprocess.Popen(f.command("killed"), cwd=f.path, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        time.sleep(share * f.seconds)
        finished = [r["name"] for r in f.rows("killed")] if (f.path / "killed/results.jsonl").exists() else []
        process.kill()
        process.wait()
    done = f.call(f.command("killed"))
    for i, name in enumerate(want):
        assert not (name in finished and f"cell {i + 1} of 3" in done.stderr), (name, done.stderr)
    got = {r["name"]: r for r in f.rows("killed")}
    assert got.keys() == want.keys() and len(f.rows("killed")) == 3
    for name in want:
        assert figures(got[name]) == figures(want[name]), name


def test_whose_events_they_are(f):
    """Cells at the same time append to one file, in which every event has its cell's name; a phase's, too."""
    events = f.path / "both.events"
    f.call(f.command("both", "--parallel", "2", "--log-json", events.name))
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    assert {e.get("cell") for e in lines if e["event"] != "phase"} == {"full method"}, lines
    assert {e.get("cell") for e in lines if e["event"] == "phase"} == {"full method", EVIL, "plain"}, lines


def test_a_log_that_cannot_be_opened(f):
    """It is a mistake of the command, not of each cell."""
    done = f.call(f.command("unlogged", "--log-json", "no/such/folder/log"), want=2)
    assert done.stderr.count("--log-json no/such/folder/log: ") == 1 and "cell" not in done.stderr, done.stderr
    assert not (f.path / "unlogged").exists()


def test_refused_before_work(f):
    """A refusal leaves nothing that was not there, and no cell is blamed for an option."""
    (f.path / "short.txt").write_text("too short")
    short = f.command("turned-away", "--eval", "short.txt")
    no_text = [a for a in f.command("turned-away") if a not in ("--data", "text.txt")]
    key = f.command("turned-away", "--set", "kv.bits=99")
    for command, said in ((short, "wkvq sweep: short.txt: the text has"), (no_text, "wkvq sweep: no text to calibrate on"),
                          (key, "wkvq sweep: --set: kv.bits: '99'")):
        done = f.call(command, want=2)
        assert said in done.stderr and not (f.path / "turned-away").exists(), done.stderr
    (f.path / "bad.yaml").write_text(SWEEP.replace("name: plain, set: {", "name: plain, set: {kv.sink: -3, "))
    done = f.call(f.command("turned-away", file="bad.yaml"), want=2)
    assert "bad.yaml: line 11: cell 'plain': " in done.stderr and not (f.path / "turned-away").exists(), done.stderr
    (f.path / "turned-away").mkdir()
    f.call(short, want=2)
    assert not list((f.path / "turned-away").iterdir())
    before = f.rows("ours") if (f.path / "ours").exists() else f.call(f.command("ours")) and f.rows("ours")
    f.call(f.command("ours", "--eval", "short.txt"), want=2)
    assert f.rows("ours") == before and (f.path / "ours/cells").is_dir() and (f.path / "ours/lock").exists()


def test_the_identity_has_the_resolved_compute(f):
    """A cell is identified by the resolved type: `auto` and its explicit type are the same cell."""
    rows = f.reference()
    resolved = {n: (r["identity"]["config"]["run"]["compute"], r["identity"]["eval"]["compute"]) for n, r in rows.items()}
    assert all("auto" not in pair for pair in resolved.values()), resolved
    assert all(pair[1] == "f32" for pair in resolved.values()), resolved
    learned = resolved["full method"][0]
    assert f"--set run.compute={learned}" in rows["full method"]["command"], rows["full method"]["command"]
    # If nothing is learned, the type of the calibration does not matter.
    assert resolved[EVIL][0] == resolved["plain"][0] == "f32", resolved
    plans = {}
    for compute in ("auto", "f32", "bf16"):
        text = f.call(f.command("reference", "--plan", "--set", f"run.compute={compute}")).stdout.splitlines()
        plans[compute] = [line.split()[0] for line in text]
    assert plans["auto"] == ["done"] * 3, plans
    # Another type in the calibration, or bf16 in the evaluation: other cells.
    assert plans["f32"] == [("done" if learned == "f32" else "to"), "done", "done"], plans
    assert plans["bf16"] == ["to"] * 3, plans


def test_many_texts_to_evaluate_on(f):
    """No text is dropped silently: the tokens of all are evaluated, from options and from the file."""
    more = []
    for i in range(70):
        tiny.make_text(f.path / f"part-{i}.txt", 30)
        more += ["--eval", f"part-{i}.txt"]
    cell = SWEEP[:SWEEP.index("cells:")] + "cells: [{name: plain, set: {weights.bits: 16, kv.bits: 16}}]\n"
    (f.path / "many.yaml").write_text(cell)
    f.call([*f.command("many", file="many.yaml"), *more, "--windows", "2", "--ctx", "32"])
    (row,) = f.rows("many")
    names = [f"part-{i}.txt" for i in range(70)]
    (f.path / "whole.txt").write_text("".join((f.path / n).read_text() for n in names))
    (f.path / "listed.yaml").write_text(cell + f"eval: {{data: {json.dumps(names)}, windows: 2, ctx: 32}}\n")
    f.call(f.command("listed", file="listed.yaml"))
    (listed,) = f.rows("listed")
    assert listed["identity"] == row["identity"] and row["command"].count("part-") == 70
    first = f.call([*f.command("first", "--plan", file="many.yaml"), *more[:128], "--windows", "2", "--ctx", "32"])
    assert row["hash"] not in first.stdout, first.stdout


def test_long_names_of_a_grid(f):
    """Points that differ only beyond the length of a short buffer are different cells with complete names."""
    mixes = ["q_proj=8, " * 60 + f"k_proj={bits}" for bits in (8, 5)]
    grid = f"grid: {json.dumps({'weights.mixed': mixes, 'weights.bits': [3, 4]})}\n"
    (f.path / "long.yaml").write_text(grid + "eval: {data: eval.txt, windows: 2, ctx: 64}\n")
    plan = f.call(f.command("long", "--plan", file="long.yaml")).stdout.splitlines()
    assert len(plan) == 4 and len(set(plan)) == 4, plan
    want = sorted(f"weights.mixed={m} weights.bits={b}" for m in mixes for b in (3, 4))
    assert sorted(line.split(None, 3)[3] if line.startswith("to") else line.split(None, 2)[2] for line in plan) == want, plan


def test_a_result_that_was_not_listed(f):
    want = f.reference()
    row = want["full method"]
    out = f.path / "unlisted"
    (out / "cells").mkdir(parents=True)
    (out / "lock").touch()
    (out / "cells" / f"{row['hash']}.json").write_text(json.dumps(row))
    done = f.call(f.command("unlisted"))
    assert "cell 1 of" not in done.stderr and len(f.rows("unlisted")) == 3


def test_what_is_no_sweep_stays(f):
    """A directory cells/ alone does not make its parent a sweep: the empty lock or the list does."""
    def tree(top):
        return {p.relative_to(top): p.read_bytes() for p in top.rglob("*") if p.is_file()}
    f.reference()
    row = (f.path / "reference/results.jsonl").read_text()
    places = {"biology": {"cells/a.txt": "x", "results.csv": "mine"}, "cells-only": {"cells/0123456789abcdef.json": "{}"},
              "own-lock": {"cells/a.txt": "x", "lock": "mine"}, "no-cells": {"lock": "", "results.jsonl": ""},
              "own-list": {"results.jsonl": '{"name": "mine"}\n'}, "own-record": {"sweep.json": '{"cells": []}'},
              "own-file": {"cells": "x", "results.jsonl": row}}
    for name, files in places.items():
        for file, text in files.items():
            (f.path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (f.path / name / file).write_text(text)
        before = tree(f.path / name)
        for more in ([], ["--plan"]):
            done = f.call(f.command(name, *more), want=2)
            assert "holds something that is not a sweep" in done.stderr, done.stderr
        assert tree(f.path / name) == before, name
    odd = f.path / "odd"
    (odd / "cells").mkdir(parents=True)
    (odd / "lock").touch()
    (odd / "cells" / "0123456789abcdef.json").write_text("{}")
    done = f.call(f.command("odd"), want=2)
    assert "not a cell's result" in done.stderr, done.stderr
    assert (odd / "cells" / "0123456789abcdef.json").exists() and not (odd / "results.jsonl").exists()


def test_a_copy_without_an_empty_cells(f):
    """Git keeps no empty directory. The list says whose place it is, and sweep.json where no cell was finished."""
    f.reference()
    for name, leave in (("copied", ()), ("copied-record", ("results.jsonl", "results.csv", "lock"))):
        shutil.copytree(f.path / "reference", f.path / name, ignore=shutil.ignore_patterns("cells", *leave))
        plan = f.call(f.command(name, "--plan")).stdout.splitlines()
        assert [line.split()[0] for line in plan] == (["to"] * 3 if leave else ["done"] * 3), plan
        assert not (f.path / name / "cells").exists(), "a plan wrote something"
        done = f.call(f.command(name))
        assert done.stderr.count("cell 1 of") == bool(leave) and len(f.rows(name)) == 3, done.stderr


def test_a_kill_before_the_lock(f):
    (f.path / "early" / "cells").mkdir(parents=True)
    f.call(f.command("early"))
    assert len(f.rows("early")) == 3


def test_parallel_gives_the_same(f):
    want = f.reference()
    f.call(f.command("beside", "--parallel", "3", "-j6"))
    got = {r["name"]: r for r in f.rows("beside")}
    assert {n: figures(r) for n, r in got.items()} == {n: figures(r) for n, r in want.items()}
    assert {r["run"]["cores"] for r in got.values()} == {2}, "threads of a cell, not of all three"


def test_command_reproduces(f):
    row = f.reference()["full method"]
    for part in row["command"].split(" && "):
        words = shlex.split(part)
        assert words[0] == "wkvq"
        done = f.run(*words[1:], "--json", "-j1")
    assert close(json.loads(done.stdout)["ppl"], row["ppl"])
    assert all(map(close, json.loads(done.stdout)["window_nll"], row["window_nll"]))


def test_rounded_activations(f):
    text = SWEEP[:SWEEP.index("cells:")] + """cells:
  - {name: A16, set: {kv.method: token}}
  - {name: learned A4, set: {kv.method: token, activations.bits: 4}}
  - {name: rtn A4, set: {weights.method: rtn, kv.method: token, activations.bits: 4}}
  - {name: plain A4, set: {weights.bits: 16, kv.bits: 16, activations.bits: 4}}
eval: {data: eval.txt, windows: 4, ctx: 64}
"""
    (f.path / "act.yaml").write_text(text)
    f.call(f.command("act", file="act.yaml"))
    rows = {r["name"]: r for r in f.rows("act")}
    packed, learned, rtn, plain = rows.values()
    assert learned["verified"] and rtn["verified"] and learned["bytes"] > 0 and rtn["bytes"] > 0
    assert learned["verify"]["activations_rounded"] is False and "activations_rounded" not in packed["verify"]
    assert close(learned["weight_bits"], packed["weight_bits"]) and close(rtn["kv_bits"], packed["kv_bits"])
    assert len(learned["blocks"]) == 3 and not rtn["blocks"]
    assert plain["weight_bits"] == plain["kv_bits"] == 16
    assert len({r["ppl"] for r in rows.values()}) == 4
    for row in rows.values():
        for part in row["command"].split(" && "):
            done = f.run(*shlex.split(part)[1:], "--json", "-j1")
        assert close(json.loads(done.stdout)["ppl"], row["ppl"]), row["command"]
    f.run("report", "act")


def test_keys_by_channel_are_simulated(f):
    text = SWEEP[:SWEEP.index("cells:")] + """cells:
  - {name: learned, set: {kv.method: channel, kv.group_size: 8, weights.bits: 3}}
  - {name: blocks of 8, set: {preset: kivi-like, kv.group_size: 8, kv.window: 1}}
  - {name: blocks of 16, set: {preset: kivi-like, kv.group_size: 16, kv.window: 1}}
  - {name: blocks that never fill, set: {preset: kivi-like, kv.group_size: 64}}
  - {name: no cache, set: {kv.bits: 16, weights.bits: 16}}
eval: {data: eval.txt, windows: 4, ctx: 64}
"""
    (f.path / "channel.yaml").write_text(text)
    f.call(f.command("channel", file="channel.yaml"))
    rows = f.rows("channel")
    learned, eight, sixteen, never, plain = rows
    assert learned["blocks"] and not eight["blocks"]
    # values are capped at the head's 8 channels, keys have 8 or 16 tokens a group
    assert close(eight["kv_bits"], 2 + 32 / 8) and close(sixteen["kv_bits"], 2 + (32 / 8 + 32 / 16) / 2)
    assert close(never["ppl"], plain["ppl"])
    assert len({r["ppl"] for r in rows[:4]}) == 4
    for row in rows:
        for part in row["command"].split(" && "):
            done = f.run(*shlex.split(part)[1:], "--json", "-j1")
        assert close(json.loads(done.stdout)["ppl"], row["ppl"]), row["command"]
    refused = f.run("quantize", "model", "-o", "no", "--data", "text.txt", "--set", "kv.method=channel", want=2)
    assert "kv.method is channel" in refused.stderr, refused.stderr


def test_bits_above_a_mix(f):
    """Bits or a group size of a cell, or of --set, end the rules of an earlier layer, and commands say so."""
    (f.path / "tuned.yaml").write_text('weights: {bits: 4, mixed: "q_proj=8"}\nkv: {bits: 4, mixed: "v=8"}\n')
    text = SWEEP[:SWEEP.index("cells:")].replace("  weights.group_size: 12\n  kv.group_size: 8\n", "  kv.method: token\n  weights.method: rtn\n")
    (f.path / "mix.yaml").write_text(text + """cells:
  - {name: tuned}
  - {name: groups, set: {weights.group_size: 12}}
  - {name: rules, set: {weights.bits: 3, weights.mixed: v_proj=6}}
  - {name: fp, set: {weights.bits: 16, kv.bits: 16}}
eval: {data: eval.txt, windows: 4, ctx: 64}
""")
    done = f.call(f.command("mix", "-c", "tuned.yaml", file="mix.yaml"))
    assert "rules of weights.mixed end in 2 of 4 cells, from 'groups' on" in done.stderr, done.stderr
    assert "rules of kv.mixed end in 1 of 4 cells, from 'fp' on" in done.stderr, done.stderr
    rows = {r["name"]: r for r in f.rows("mix")}
    tuned, groups, rules, fp = rows.values()
    mixed = {n: (r["identity"]["config"]["weights"].get("mixed"), r["identity"]["config"]["kv"].get("mixed")) for n, r in rows.items()}
    assert mixed == {"tuned": ("q_proj=8", "v=8"), "groups": (None, "v=8"), "rules": ("v_proj=6", "v=8"), "fp": (None, None)}, mixed
    assert fp["weight_bits"] == fp["kv_bits"] == 16 and groups["set"] == ["weights.group_size=12"], fp
    for row in rows.values():
        for part in row["command"].split(" && "):
            done = f.run(*shlex.split(part)[1:], "--json", "-j1")
        assert close(json.loads(done.stdout)["ppl"], row["ppl"]), row["command"]
    (f.path / "base.yaml").write_text(text.replace("base:", "base:\n  kv.mixed: k=6") + "cells: [{name: a}, {name: b, set: {kv.bits: 3}}]\neval: {data: eval.txt, windows: 4, ctx: 64}\n")
    f.call(f.command("based", "-c", "tuned.yaml", "--set", "weights.bits=5", file="base.yaml"))
    configs = [r["identity"]["config"] for r in f.rows("based")]
    assert ["mixed" in c["weights"] for c in configs] == [False, False], configs
    assert [c["kv"].get("mixed") for c in configs] == ["k=6", None], configs
    done = f.run("eval", "model", "--simulate", "rtn", "-c", "tuned.yaml", "--set", "weights.bits=16", "--set",
                 "kv.bits=16", "-d", "eval.txt", "--ctx", "64", "--windows", "4", "-j1")
    assert "W16KV16" in done.stdout and done.stderr.count("so the rules of weights.mixed in tuned.yaml no longer apply") == 1, done
    assert f"{fp['ppl']:.3f}" in done.stdout, (done.stdout, fp)


def test_claims_of_a_file(f):
    """Claims reach the record; one about no cell, or with other keys, is refused before work."""
    good = "claims: [{claim: it helps, better: full method, than: [plain, full method], by: memory}]\n"
    (f.path / "claims.yaml").write_text(SWEEP + good)
    f.call(f.command("claimed", "--set", "calibration.epochs=1", file="claims.yaml"))
    (claim,) = json.loads((f.path / "claimed/sweep.json").read_text())["claims"]
    line = SWEEP.count("\n") + 1
    assert claim == {"claim": "it helps", "better": "full method", "than": ["plain", "full method"], "by": "memory",
                     "line": line}, claim
    for bad, why in (("than: nobody", "a claim about 'nobody', but no cell has this name"),
                     ("than: [plain, plain, plain]", "than: want a cell's name, or a list of two"),
                     ("than: plain, by: weight", "by: 'weight' is unknown; want quality, perplexity, zeroshot, longbench or memory"),
                     ("than: plain, when: now", "want claim, better, than and by, nothing else"),
                     ("by: memory", "want claim, better, than and by")):
        (f.path / "claims.yaml").write_text(SWEEP + f"claims: [{{claim: it helps, better: plain, {bad}}}]\n")
        done = f.call(f.command("refused", file="claims.yaml"), want=2)
        assert f"claims.yaml: line {line}" in done.stderr and why in done.stderr, (bad, done.stderr)
    assert not (f.path / "refused").exists()


def test_a_failing_cell_does_not_stop_the_others(f):
    (f.path / "bad.yaml").write_text(SWEEP.replace("cells:", "cells:\n  - {name: bad, set: {calibration.seqlen: 1048576}}"))
    done = f.call(f.command("bad", file="bad.yaml"), want=2)
    assert "cell 'bad'" in done.stderr, done.stderr
    assert len(f.rows("bad")) == 3


DEMO = pathlib.Path(__file__).parents[2] / "data" / "demo"
SWEEPS = DEMO.parents[1] / "configs" / "sweeps"


def test_shipped_sweeps_are_read(f):
    cells = {}
    for file in sorted(SWEEPS.glob("*.yaml")):
        plan = f.run("sweep", file, "-m", DEMO, "-d", DEMO / "calibration.txt", "-e", DEMO / "heldout.txt",
                     "-o", "shipped", "--plan")
        assert "is skipped" not in plan.stderr, plan.stderr
        cells[file.stem] = len(plan.stdout.splitlines())
    assert cells == {"ablation": 13, "activations": 6, "best": 17, "bits": 20, "demo": 3, "group_size": 20, "k": 8, "paper": 8, "window": 8}, cells


if __name__ == "__main__":
    harness.main(globals(), Fixture)
