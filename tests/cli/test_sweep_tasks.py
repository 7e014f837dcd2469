#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Texts and tasks that a sweep measures beside its perplexity: test_sweep_tasks.py WKVQ [TEST...]."""
import csv
import json
import math
import pathlib
import signal
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import harness
import test_sweep
import test_task_output
import test_tasks

SWEEP = """
base:
  calibration: {samples: 4, seqlen: 64, epochs: 1}
  weights.group_size: 12
  kv.group_size: 8
  crr.blocks: 1
cells:
  - {name: learned}
  - {name: W4A4, set: {activations.bits: 4}}
  - {name: plain, set: {weights.bits: 16, kv.bits: 16}}
eval: {data: eval.txt, windows: 4, ctx: 64}
"""
ARC = [{"question": {"stem": f"Why {i}?", "choices": [{"text": t, "label": k} for k, t in zip("ABC", ["x", "yy", "z z"])]},
        "answerKey": "ABC"[i % 3]} for i in range(9)]
ZEROSHOT = ["--zeroshot", "piqa.jsonl", "--labels", "labels.lst", "--zeroshot", "arc_easy.jsonl"]
LONGBENCH = ["--longbench", "qasper.jsonl", "--longbench", "lcc.jsonl", "--prompts", "prompts.json",
             "--max-gen", "lengths.json"]
ALL = ["--eval-text", "PTB=other.txt", "--eval-join", "space", *ZEROSHOT, *LONGBENCH, "--task-ctx", "200"]
NAMES = ["PTB", "piqa", "arc_easy", "qasper", "lcc"]


class Fixture(test_sweep.Fixture):
    def __init__(self, wkvq, folder):
        super().__init__(wkvq, folder)
        (self.path / "s.yaml").write_text(SWEEP)
        (self.path / "other.txt").write_text((self.path / "text.txt").read_text()[500:3000])
        test_tasks.write_rows(self.path / "piqa.jsonl", test_tasks.piqa_lines(12, label=False))
        test_tasks.write_rows(self.path / "arc_easy.jsonl", ARC)
        (self.path / "labels.lst").write_text("0\n1\n1\n" * 4)
        test_task_output.long_files(self)

    def reference(self):
        if not (self.path / "reference").exists():
            self.call(self.command("reference", *ALL, "--keep", "--log-json", "log"))
        return {r["name"]: r for r in self.rows("reference")}


def measures(row):
    return {m["name"]: m for m in row.get("measures", [])}


def without_time(row):
    """Returns what a result says apart from when and how long."""
    row = test_sweep.figures(row)
    if "measures" in row:
        row["measures"] = [{k: v for k, v in m.items() if k != "seconds"} for m in row["measures"]]
    return row


def evaluate(f, row, part, out="reference"):
    """Returns the result of one of the commands that a cell's record gives."""
    (text,) = [c for c in row["command"].split(" && ") if part in c]
    words = text.replace("wkvq", f.wkvq, 1).replace(
        row["hash"], f"{out}/cells/{row['hash']}")
    return json.loads(f.call([*words.split(), "--json", "-q", "-j1"]).stdout)


def test_figures(f):
    """Every figure is that of `wkvq eval` with the command in the result, of quantized cells as well."""
    rows = f.reference()
    assert all(list(measures(row)) == NAMES for row in rows.values())
    for row in rows.values():
        have = measures(row)
        text = evaluate(f, row, "other.txt")
        assert test_sweep.close(have["PTB"]["ppl"], text["ppl"]) and have["PTB"]["ppl"] != row["ppl"]
        test_tasks.near(have["PTB"]["window_nll"][0], text["window_nll"][0], 1e-6, "nll")
        for name in ("piqa", "arc_easy"):
            (want,) = evaluate(f, row, name)["sets"]
            for key in ("acc", "acc_norm", "acc_stderr", "acc_norm_stderr"):
                test_tasks.near(have[name][key], want[key], 1e-8, name + " " + key)
            assert len(have[name]["right"]) == have[name]["n"] == want["n"]
            assert test_sweep.close(statistics.mean(have[name]["right"]), want["acc"]), have[name]
            assert test_sweep.close(statistics.mean(have[name]["right_norm"]), want["acc_norm"]), have[name]
        for name in [n for n in ("qasper", "lcc") if n in have]:
            (want,) = evaluate(f, row, name)["sets"]
            test_tasks.near(have[name]["score"], want["score"], 1e-6, name)
            test_tasks.near(statistics.mean(have[name]["scores"]), want["score"], 1e-6, name)


def test_phases(f):
    """Progress names the set that is measured, also in a cell that had no phase before it."""
    f.reference()
    lines = [json.loads(line) for line in (f.path / "log").read_text().splitlines()]
    phases = [line["phase"] for line in lines if line.get("event") == "phase"]
    for name in NAMES[1:]:
        assert phases.count(name) == len(f.reference()), (name, phases)


def test_columns(f):
    rows = f.reference()
    with open(f.path / "reference/results.csv", newline="") as file:
        table = {t["name"]: t for t in csv.DictReader(file)}
    for name, row in rows.items():
        have, line = measures(row), table[name]
        assert test_sweep.close(float(line["ppl_PTB"]), have["PTB"]["ppl"])
        for key in ("acc", "acc_norm"):
            sets = [have["piqa"], have["arc_easy"]]
            for one in sets:
                assert test_sweep.close(float(line[f"{one['name']}_{key}"]), one[key]), line
            mean = sum(s[key] for s in sets) / 2
            error = math.hypot(*(s[key + "_stderr"] / 2 for s in sets))
            assert test_sweep.close(float(line["zeroshot_" + key]), mean), line
            assert test_sweep.close(float(line[f"zeroshot_{key}_stderr"]), error), line
        mean = (have["qasper"]["score"] + have["lcc"]["score"]) / 2
        assert abs(float(line["longbench"]) - mean) <= 1e-6, (name, line)


def test_commands_read_texts_alike(f):
    """How a cell reads a text and computes is in the commands, though an artifact and a state do not say it."""
    (f.path / "read.yaml").write_text(SWEEP.replace(
        "samples: 4", "join: space, bos: never, samples: 4").replace("  crr", "  run.compute: bf16\n  crr"))
    f.call(f.command("read", "--keep", "--eval-text", "PTB=other.txt", file="read.yaml"))
    for row in f.rows("read"):
        assert row["command"].count(" --join space --bos never --windows") == 2, row["command"]
        for part, want in (("eval.txt", row["ppl"]), ("other.txt", measures(row)["PTB"]["ppl"])):
            got = evaluate(f, row, part, "read")
            assert test_sweep.close(got["ppl"], want) and got["compute"] == "bf16", (row["name"], got["ppl"], want)


def test_a_cache_without_answers(f):
    """The packed runtime has no cache of another engine, so such a cell has every measure but LongBench's."""
    cells = SWEEP[:SWEEP.index("cells:")].replace("  kv.group_size: 8\n", "") + """cells:
  - {name: fp8, set: {kv.target: fp8}}
eval: {data: eval.txt, windows: 2, ctx: 64}
"""
    (f.path / "target.yaml").write_text(cells)
    done = f.call(f.command("target", *ZEROSHOT, *LONGBENCH, "--limit", "2", "--task-ctx", "200", file="target.yaml"))
    assert "cell 'fp8' has no figures of LongBench" in done.stderr, done.stderr
    assert list(measures(f.rows("target")[0])) == ["piqa", "arc_easy"]


def test_limit(f):
    f.call(f.command("limited", *ZEROSHOT, "--limit", "4", "--task-ctx", "200"))
    have = measures(f.rows("limited")[0])
    assert [(have[n]["n"], have[n]["rows"]) for n in ("piqa", "arc_easy")] == [(4, 12), (4, 9)], have
    f.call(f.command("limited", *ZEROSHOT, "--limit", "5", "--task-ctx", "200"))
    row = f.rows("limited")[0]
    have = measures(row)
    assert [have[n]["n"] for n in ("piqa", "arc_easy")] == [5, 5], have
    commands = row["command"].split(" && ")
    assert commands[2:] == [have["piqa"]["command"], have["arc_easy"]["command"]], commands
    assert all("--limit 5" in c for c in commands[2:]), commands


def test_cut(f):
    """--task-ctx is --ctx by default, and then short windows cost questions their beginning, as is said everywhere."""
    rows = [{"goal": "x" * n, "sol1": "a", "sol2": "b", "label": 0} for n in (9, 44, 45, 46, 90)]
    test_tasks.write_rows(f.path / "long.jsonl", rows)
    cut = sum(len(f"Question: {row['goal']}\nAnswer: a") > 64 for row in rows)
    done = f.call(f.command("cut", "--zeroshot", "long.jsonl", "--zeroshot", "arc_easy.jsonl"))
    have = measures(f.rows("cut")[0])
    assert have["arc_easy"]["cut"] == 0 < have["piqa"]["cut"] == cut < 5, (have["piqa"]["cut"], cut)
    said = f"long.jsonl: of 5 questions, {cut} lost the beginning to fit --task-ctx 64; give a larger --task-ctx"
    assert done.stderr.count(said) == 1 and "arc_easy.jsonl: of" not in done.stderr, done.stderr
    page = (f.path / "cut/report.html").read_text()
    assert page.count(f"Of 5 questions of piqa, {cut} lost the beginning") == 1
    f.reference()
    assert "lost the beginning" not in (f.path / "reference/report.html").read_text()


def killed_at(f, out, args, count):
    """Kills a sweep once a cell has `count` measures; returns the results of this cell."""
    process = subprocess.Popen(f.command(out, *args), cwd=f.path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    part = None
    while part is None:
        for path in (f.path / out).glob("cells/*.part"):
            try:
                row = json.loads(path.read_text())
            except FileNotFoundError:
                continue
            if len(row.get("measures", [])) == count:
                part = row
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return part


def check_plan(f, sets, part, count):
    """--plan prints how far the killed cell is, which may have had one more measure before it died."""
    plan = json.loads(f.call([*f.command("killed", *sets), "--plan", "--json"]).stdout)
    (cell,) = [c for c in plan if c["hash"] == part["hash"]]
    assert cell["blocks"] == ({"done": 3, "total": 3} if part["blocks"] else None), cell
    measures = cell["measures"]["done"]
    assert count <= measures <= 3 == cell["measures"]["total"] and cell["status"] == "begun", cell
    said = f"{part['name']} {'(3 of 3 blocks) ' if part['blocks'] else ''}({measures} of 3 further measures)\n"
    text = f.call([*f.command("killed", *sets), "--plan"]).stdout
    assert said in text, (said, text)


def test_killed_and_resumed(f):
    """A finished set is not repeated, which its time shows, and all figures are those of a run without a kill."""
    test_tasks.write_rows(f.path / "long.jsonl", test_tasks.piqa_lines(120, 3))
    sets = ["--eval-text", "PTB=other.txt", "--zeroshot", "arc_easy.jsonl", "--zeroshot", "long.jsonl", "--task-ctx", "200"]
    f.call(f.command("whole", *sets))
    for count in (0, 1, 2):
        part = killed_at(f, "killed", sets, count)
        check_plan(f, sets, part, count)
        f.call(f.command("killed", *sets))
        (row,) = [r for r in f.rows("killed") if r["hash"] == part["hash"]]
        assert row["seconds"] == part["seconds"] and row["run"] == part["run"], "the perplexity was computed again"
        assert row.get("measures", [])[:count] == part.get("measures", [])
        assert [without_time(r) for r in f.rows("killed")] == [without_time(r) for r in f.rows("whole")]
        left = list((f.path / "killed/cells").iterdir())
        assert not left, left
        subprocess.run(["rm", "-r", str(f.path / "killed")], check=True)


def killed_with_answers(f, out, args, count):
    """Kills a sweep once a cell has answered `count` questions of a measure; returns the file of its answers."""
    process = subprocess.Popen(f.command(out, *args), cwd=f.path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while True:
        for path in (f.path / out).glob("cells/*.answers"):
            if len(path.read_bytes().splitlines()) >= count:
                process.send_signal(signal.SIGKILL)
                process.wait()
                return path
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.001)


def test_answers_are_kept(f):
    """A killed cell takes the answers that it has, which a right answer among them shows: this model gives none."""
    rows = [json.loads(line) for line in (f.path / "qasper.jsonl").read_text().splitlines()]
    (f.path / "more").mkdir(exist_ok=True)
    test_tasks.write_rows(f.path / "more/qasper.jsonl", (rows * 20)[:40])
    sets = ["--longbench", "more/qasper.jsonl", *LONGBENCH[4:], "--task-ctx", "200"]
    path = killed_with_answers(f, "answers", sets, 2)
    lines = path.read_text().splitlines()
    mark = json.loads(lines[0])
    mark["pred"] = mark["answers"][0]
    path.write_text("\n".join([json.dumps(mark), *lines[1:2], ""]))
    f.call(f.command("answers", *sets))
    (row,) = [r for r in f.rows("answers") if r["hash"] == path.stem]
    scores = measures(row)["qasper"]["scores"]
    assert [i for i, s in enumerate(scores) if s == 100] == [mark["question"]], scores
    assert len(scores) == 40 and not list((f.path / "answers/cells").iterdir())
    # answers to other questions are no use
    path = killed_with_answers(f, "others", sets, 2)
    f.call(f.command("others", *sets, "--limit", "3"))
    (row,) = [r for r in f.rows("others") if r["hash"] == path.stem]
    assert len(measures(row)["qasper"]["scores"]) == 3 and not list((f.path / "others/cells").iterdir())


def test_more_measures_later(f):
    """A cell with its perplexity computes what is missing alone; with --keep it is not calibrated again."""
    want = [without_time(r) for r in f.reference().values()]
    f.call(f.command("kept", "--keep"))
    first = f.rows("kept")
    assert all("measures" not in r for r in first)
    kept = sorted(p.name for p in (f.path / "kept/cells").iterdir())
    assert kept == sorted(r["hash"] for r in first[:2]), kept
    done = f.call(f.command("kept", "--keep", *ALL))
    assert "cell 1 of 3" in done.stderr and "epoch" not in done.stderr, done.stderr
    for row, was, one in zip(f.rows("kept"), first, want, strict=True):
        assert row["seconds"] == was["seconds"] and row["measures"], row
        assert without_time(row)["measures"] == one["measures"]
        assert {**without_time(row), "measures": 0, "command": 0} == {**without_time(was), "measures": 0, "command": 0}
        assert row["command"] == one["command"], "its commands compute all of its figures"
    again = f.call(f.command("kept", "--keep", *ALL))
    assert "cell 1 of" not in again.stderr, again.stderr
    # another limit replaces a set and leaves the others
    f.call(f.command("kept", "--keep", *ALL, "--limit", "2"))
    for row, one in zip(f.rows("kept"), want, strict=True):
        have = measures(without_time(row))
        assert have["PTB"] == {m["name"]: m for m in one["measures"]}["PTB"] and have["piqa"]["n"] == 2
    # without --keep the artifact is made again, and its figures are the same
    f.call(f.command("again"))
    f.call(f.command("again", *ALL))
    assert [r["measures"] for r in map(without_time, f.rows("again"))] == [r["measures"] for r in want]


def test_one_cell_and_parallel(f):
    want = [without_time(r) for r in f.reference().values()]
    for i in (2, 1, 3):
        f.call(f.command("single", *ALL, "--cell", str(i)))
    f.call(f.command("parallel", *ALL, "--parallel", "2"))
    for out in ("single", "parallel"):
        assert [without_time(r) for r in f.rows(out)] == want, out


if __name__ == "__main__":
    harness.main(globals(), Fixture)
