#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What a sweep's directory says of several runs, twins and bad cells: test_sweep_runs.py WKVQ [TEST...]."""
import csv
import json
import statistics

import harness
import test_sweep
from test_report import report
from test_sweep import SWEEP, figures

TWINS = SWEEP[:SWEEP.index("cells:")].replace("crr.blocks: 1", "weights: {bits: 8, method: rtn}\n  kv.bits: 16") + """cells:
  - {name: A}
  - {name: B, set: {weights.bits: 8}}
  - {name: C, set: {weights.bits: 3}}
eval: {data: eval.txt, windows: 4, ctx: 64}
"""


FULL = TWINS[:TWINS.index("  kv.bits: 16")] + """cells:
  - {name: a window, set: {kv.window: 64}}
  - {name: all but one, set: {kv.window: 1}}
eval: {data: eval.txt, windows: 4, ctx: 64}
"""


def status(f, out, file):
    return [c["status"] for c in json.loads(f.call(f.command(out, "--plan", "--json", file=file)).stdout)]


def test_a_cache_in_full_precision(f):
    """A warning names the cell whose cache quantizes nothing, once for all texts."""
    (f.path / "full.yaml").write_text(FULL)
    said = f.call(f.command("full", "--eval-text", "again=text.txt", file="full.yaml")).stderr
    assert said.count("in full precision") == 1, said
    assert "warning: cell 'a window': --ctx 64: the cache keeps so many tokens in full precision" in said, said


def test_twins(f):
    """A cell of the same configuration as an earlier one has its status and its result, under its own name."""
    (f.path / "twins.yaml").write_text(TWINS)
    plan = f.call(f.command("twins", "--plan", file="twins.yaml"))
    assert "cell 'B' has the same configuration as 'A' and shares its result" in plan.stderr, plan.stderr
    assert status(f, "twins", "twins.yaml") == ["to do"] * 3
    listed = f.call(f.command("twins", "--print-cells", file="twins.yaml")).stdout.splitlines()
    assert [line.split("\t")[::2] for line in listed] == [["1", "A"], ["3", "C"]], listed
    done = f.call(f.command("twins", "--cell", "2", file="twins.yaml"))
    assert "its result is that of cell 1" in done.stderr and "is done" not in done.stderr, done.stderr
    assert status(f, "twins", "twins.yaml") == ["to do"] * 3
    f.call(f.command("twins", "--cell", "1", file="twins.yaml"))
    assert status(f, "twins", "twins.yaml") == ["done", "done", "to do"]
    done = f.call(f.command("twins", "--json", file="twins.yaml"))
    rows = json.loads(done.stdout)
    assert [(r["cell"], r["name"], r["set"]) for r in rows] == [
        (1, "A", []), (2, "B", ["weights.bits=8"]), (3, "C", ["weights.bits=3"])], rows
    assert rows[0]["window_nll"] == rows[1]["window_nll"] != rows[2]["window_nll"] and len(f.rows("twins")) == 2
    assert f.call(f.command("twins", "--print-cells", file="twins.yaml")).stdout == ""


def test_a_failed_verification(f):
    """Such a cell is listed and marked, the others run, and every command that has it ends with status 3."""
    (f.path / "twins.yaml").write_text(TWINS)
    f.call(f.command("unverified", file="twins.yaml"))
    first, bad = f.rows("unverified")
    bad |= {"verified": False, "verify": bad["verify"] | {"first_difference": "layer 0: q_proj differs"}}
    (f.path / "unverified/results.jsonl").write_text(json.dumps(bad) + "\n")
    done = f.call(f.command("unverified", file="twins.yaml"), want=3)
    assert "cell 1 of 3: A" in done.stderr and "cell 3 of 3" not in done.stderr, done.stderr
    assert "wkvq sweep: cell 'C': verification failed: layer 0: q_proj differs\nDo not use" in done.stderr, done.stderr
    assert "report.html: the page" in done.stderr and figures(f.rows("unverified")[0]) == figures(first)
    marked = [line[:32].strip() for line in done.stdout.splitlines() if line.endswith("  verification FAILED")]
    assert marked == ["C"] and len(done.stdout.splitlines()) == 4, done.stdout
    with open(f.path / "unverified/results.csv", newline="") as file:
        assert [t["verified"] for t in csv.DictReader(file)] == ["yes", "no"]
    plan = json.loads(f.call(f.command("unverified", "--plan", "--json", file="twins.yaml")).stdout)
    assert [(c["status"], c["message"]) for c in plan] == [
        ("done", None), ("done", None), ("failed", "verification failed: layer 0: q_proj differs")], plan
    said = f.call(f.command("unverified", "--cell", "3", file="twins.yaml"), want=3).stderr
    assert "cell 'C': verification failed: " in said, said
    f.call(f.command("unverified", "--cell", "1", file="twins.yaml"))
    said = f.call(f.command("unverified", "--slurm", file="twins.yaml"), want=3).stderr
    assert "cell 'C': verification failed: " in said and "all cells are done" not in said, said
    (f.path / "unverified/results.jsonl").write_text(json.dumps(bad | {"hash": first["hash"], "identity": first["identity"]}) + "\n" + json.dumps(bad) + "\n")
    said = f.call(f.command("unverified", file="twins.yaml"), want=3).stderr
    assert "3 cells failed their verification; cell 'A': verification failed: " in said, said


def test_the_record_of_single_cells(f):
    """Tasks keep the record of a run of the same cells, with its command, and replace that of another."""
    (f.path / "twins.yaml").write_text(TWINS)
    read = lambda: json.loads((f.path / "record/sweep.json").read_text())
    f.call(f.command("record", "--cell", "1", file="twins.yaml"))
    first = read()
    f.call(f.command("record", "--cell", "3", file="twins.yaml"))
    assert read() == first and "--cell 1" in first["command"], first
    # another machine may resolve run.compute otherwise, so that its hash is another
    changed = {**first, "cells": [{**c, "hash": "0" * 16} for c in first["cells"]]}
    (f.path / "record/sweep.json").write_text(json.dumps(changed))
    f.call(f.command("record", "--cell", "3", file="twins.yaml"))
    assert read() == changed
    assert f.run("report", "record", "-o", "r.html") and "<h2>Earlier" not in (f.path / "r.html").read_text()
    f.call(f.command("record", "--cell", "3", "--set", "weights.group_size=6", file="twins.yaml"))
    assert [c["name"] for c in read()["cells"]] == ["A", "B", "C"] and read()["cells"][2]["hash"] != first["cells"][2]["hash"]
    (f.path / "record/sweep.json").write_text("{")
    f.call(f.command("record", "--cell", "3", file="twins.yaml"))
    assert read()["cells"] == first["cells"]


RUNS = """
base: {calibration.seqlen: 64, weights.group_size: 12}
cells:
  - {name: fp, set: {weights.bits: 16, kv.bits: 16}}
  - {name: rtn, set: {weights.method: rtn, weights.bits: 4, kv.bits: 16}}
claims: [{claim: no loss, better: fp, than: rtn, by: perplexity}]
eval: {data: eval.txt, windows: 4, ctx: 64}
"""


def pairs(text):
    """Returns name and perplexity of each line of a sweep's table."""
    return {line[:32].strip(): line[32:].split()[0] for line in text.splitlines()[1:]}


def check_run(f, done, rows, base):
    """Table, page, claim and finding are of these results alone."""
    want = {n: f"{r['ppl']:.4f}" for n, r in rows.items()}
    assert pairs(done.stdout) == want and len(done.stdout.splitlines()) == 3, done.stdout
    _, page, _ = report(f, out="runs")
    assert {n: c["Perplexity"] for n, c in page.table("Settings").items()} == want, page.table("Settings")
    d = [a - b for a, b in zip(*(r["window_nll"] for r in rows.values()), strict=True)]
    (row,) = next(t for t in page.tables if t[0][0] == "Claim")[1:]
    assert row[2] == f"{statistics.mean(d):+.5f}", (row, d)
    said = f"{rows['rtn']['ppl']:.3f}, against {rows[base]['ppl']:.3f} in full precision"
    assert said in "".join(page.words), (said, "".join(page.words)[:500])
    return page


def test_runs_of_other_cells(f):
    """What earlier runs left in the directory is listed apart, whatever made its cells others."""
    f.reference()
    (f.path / "runs.yaml").write_text(RUNS)
    seen = {}
    for i, more in enumerate(([], ["--eval", "text.txt", "--windows", "3"], ["--set", "weights.group_size=6"])):
        done = f.call(f.command("runs", *more, file="runs.yaml"))
        now = [r for r in f.rows("runs") if r["hash"] not in seen]
        page = check_run(f, done, {r["name"]: r for r in now}, "fp")
        assert ("also has" in done.stderr) == (i > 0) and (f"has {2 * i} results of earlier runs" in done.stderr) == (i > 0)
        if i:
            (old,) = [t for t in page.tables if "Ended" in t[0]]
            assert sorted(r[1] for r in old[1:]) == sorted(f"{r['ppl']:.4f}" for r in seen.values()), old
        seen |= {r["hash"]: r for r in now}
    # the first run again: nothing is computed, and its results are those of the page
    done = f.call(f.command("runs", file="runs.yaml"))
    assert "cell 1 of" not in done.stderr, done.stderr
    check_run(f, done, {r["name"]: r for r in list(seen.values())[:2]}, "fp")
    # another name for a result that is there
    (f.path / "runs.yaml").write_text(RUNS.replace("fp", "full precision"))
    done = f.call(f.command("runs", file="runs.yaml"))
    assert "cell 1 of" not in done.stderr and "full precision  " in done.stdout and "fp" not in done.stdout, done.stdout
    rows = dict(zip(("full precision", "rtn"), seen.values()))
    check_run(f, done, rows, "full precision")
    assert "Difference to full precision" in "".join(report(f, "--base", "full precision", out="runs")[1].words)
    # no cell of the latest run is done
    about = json.loads((f.path / "runs/sweep.json").read_text())
    about["cells"] = [c | {"hash": "0", "spec": "0"} for c in about["cells"]]
    (f.path / "runs/sweep.json").write_text(json.dumps(about))
    assert "no results of the latest run yet, only 6 of earlier ones" in f.run("report", "runs", want=2).stderr


def test_a_twin_in_claims(f):
    """Both names of one result are on the page, and claims about either are judged."""
    (f.path / "named.yaml").write_text(TWINS + "claims: [{claim: bits help, better: B, than: C}, {claim: A too, better: A, than: C}]\n")
    f.call(f.command("named", file="named.yaml"))
    (f.path / "named/results.jsonl").write_text("".join(json.dumps(r | {"seconds": 30}) + "\n" for r in f.rows("named")))
    _, page, _ = report(f, "--base", "B", out="named")
    assert list(page.table("Settings")) == ["A", "B", "C"] and page.table("Settings")["B"]["Settings"] == "weights.bits=8"
    (_, first, second) = next(t for t in page.tables if t[0][0] == "Claim")
    assert first[1:] == second[1:] and first[2] != "\u2013", (first, second)
    assert "; 3 cells took 60 s" in "".join(page.words), "one result is counted twice"


if __name__ == "__main__":
    harness.main(globals(), test_sweep.Fixture)
