#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Cells of one sweep in several processes, as a batch system runs them: test_cells.py WKVQ [TEST...]."""
import csv
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "cli"))
import harness
import tiny
from test_report import Page
from test_sweep import SWEEP, Fixture, figures

# Stands for sbatch: keeps its arguments, and runs the tasks of the array one after another.
SBATCH = """#!/usr/bin/env python3
import json, os, subprocess, sys
json.dump(sys.argv[1:], open("sbatch.json", "w"))
if os.environ.get("SBATCH_WAITS"):
    sys.exit(0)
array = next(a for a in sys.argv if a.startswith("--array="))[8:]
for part in array.split("%")[0].split(","):
    first, _, last = part.partition("-")
    for task in range(int(first), int(last or first) + 1):
        subprocess.run(["sh", sys.argv[-1]], env={**os.environ, "SLURM_ARRAY_TASK_ID": str(task)})
sys.exit(int(os.environ.get("SBATCH_STATUS", "0")))
"""


def begin(f, out, *more):
    return subprocess.Popen(f.command(out, *more), cwd=f.path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def same_as_reference(f, out):
    """The list, the table and the page equal those of the sweep in one process, apart from times."""
    want = list(f.reference().values())
    assert [figures(r) for r in f.rows(out)] == [figures(r) for r in want]
    tables = []
    for name in ("reference", out):
        with open(f.path / name / "results.csv", newline="") as file:
            tables.append([{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)])
    assert tables[0] == tables[1], tables
    left = [p.name for p in (f.path / out / "cells").iterdir()]
    assert not left, left


def page(f, out):
    """Returns the cells and perplexities of a report's first table."""
    f.run("report", out, "-o", "page.html")
    return [row[0:3] for row in Page((f.path / "page.html").read_text()).tables[0]]


def test_cells_at_the_same_time(f):
    """All cells at once, in any order, and one of them twice."""
    f.reference()
    running = [begin(f, "at-once", "--cell", str(n)) for n in (3, 1, 2, 1)]
    starts = 0
    for process in running:
        said = process.communicate(timeout=200)[1]
        assert process.returncode == 0, said
        starts += said.count("cell 1 of 3")
    assert starts == 1, "cell 1 ran twice"
    same_as_reference(f, "at-once")
    assert page(f, "at-once") == page(f, "reference")
    done = f.call(f.command("at-once", "--cell", "2"))
    assert "is done" in done.stderr and "perplexity" not in done.stderr, done.stderr


def test_a_cell_that_another_process_finished(f):
    """The sweep waits in its first cell while another process ends the last one, which is then not run again."""
    out = f.path / "shared-cell"
    process = subprocess.Popen(f.command("shared-cell"), cwd=f.path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               text=True, start_new_session=True)
    try:
        while not list(out.glob("cells/*.lock")):
            assert process.poll() is None
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGSTOP)
        f.call(f.command("shared-cell", "--cell", "3"))
        (left,) = out.glob("cells/*.json")
        row = json.loads(left.read_text())
    finally:
        os.killpg(process.pid, signal.SIGCONT)
    said = process.communicate(timeout=200)[1]
    assert process.returncode == 0 and f"cell '{row['name']}': another process has finished it" in said, said
    assert f.rows("shared-cell")[2] == row, "the cell ran again"
    same_as_reference(f, "shared-cell")


def begin_and_pause(f, out, cell):
    """A process that holds the lock of a cell, and halts there."""
    process = begin(f, out, "--cell", str(cell))
    while not list((f.path / out).glob("cells/*.state")):
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGSTOP)
    return process


def test_a_cell_that_another_process_runs(f):
    """The whole sweep runs the other cells, takes this one's result at its end, and makes the page."""
    other = begin_and_pause(f, "beside", 1)
    whole = begin(f, "beside")
    try:
        while "looks again after its other cells" not in whole.stderr.readline():
            assert whole.poll() is None
    finally:
        other.send_signal(signal.SIGCONT)
    assert other.wait(200) == 0, other.stderr.read()
    said = whole.communicate(timeout=200)[1]
    assert whole.returncode == 0 and "failed" not in said, said
    assert (f.path / "beside/report.html").exists()
    same_as_reference(f, "beside")


def test_a_cell_that_another_process_still_runs(f):
    """It has not failed, and the next sweep runs it if that process does not."""
    other = begin_and_pause(f, "occupied", 1)
    try:
        done = f.call(f.command("occupied"), want=2)
    finally:
        other.kill()
    other.communicate()
    for words in ("another process works on it; this sweep looks again", "another process works on this cell; wait for it"):
        assert done.stderr.count(words) == 1, done.stderr
    assert "another process works on cell 'full method', and no cell failed; run the same command" in done.stderr, done.stderr
    assert "cell 'full method' failed" not in done.stderr and len(f.rows("occupied")) == 2, done.stderr
    f.call(f.command("occupied"))
    same_as_reference(f, "occupied")


def test_print_cells(f):
    want = list(f.reference().values())
    lines = f.call(f.command("printed", "--print-cells")).stdout.splitlines()
    assert [line.split("\t") for line in lines] == [[str(i + 1), r["hash"], r["name"]] for i, r in enumerate(want)], lines
    f.call(f.command("printed", "--cell", "2"))
    command = " ".join(f"'{w}'" for w in f.command("printed"))
    f.call(["sh", "-c", f"{command} --print-cells | cut -f1 | xargs -P 2 -I N {command} --cell N"])
    assert f.call(f.command("printed", "--print-cells")).stdout == ""
    same_as_reference(f, "printed")


def test_a_cell_as_json(f):
    """Its result, whether it is computed now or was there; a twin's is that of the first cell, under its own name."""
    (f.path / "twins.yaml").write_text(SWEEP.replace("eval:", "  - {name: twin, set: {weights.bits: 16, kv.bits: 16}}\neval:"))
    shown = lambda n: json.loads(f.call(f.command("as-json", "--json", "--cell", n, file="twins.yaml")).stdout)
    assert shown("4") is None
    row, again, twin = shown("3"), shown("3"), shown("4")
    (listed,) = f.rows("as-json")
    assert row == again and row["name"] == "plain" and row["cell"] == 3 and row["identity"] == listed["identity"], row
    assert abs(row["ppl"] - listed["ppl"]) < 1e-4 and twin == {**row, "name": "twin", "cell": 4}, (row, twin)


def test_a_killed_cell(f):
    f.reference()
    rng = random.Random(3)
    for _ in range(6):
        process = begin(f, "cell-kill", "--cell", "1")
        time.sleep(rng.uniform(0.02, 0.8 * f.seconds))
        process.kill()
        process.communicate()
    for n in (2, 1, 3):
        f.call(f.command("cell-kill", "--cell", str(n)))
    same_as_reference(f, "cell-kill")


def test_a_stopped_cell(f):
    """SIGTERM, as before preemption: the state is saved, and the same task resumes it."""
    more = ["--set", "calibration.epochs=40", "--cell", "1"]
    f.call(f.command("whole", *more))
    process = begin(f, "stopped", *more)
    while not list((f.path / "stopped").glob("cells/*.state/partial-*")):
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=100)[1]
    assert process.returncode == 130 and "stopped in block" in said, said
    plan = f.call(f.command("stopped", "--set", "calibration.epochs=40", "--plan")).stdout.splitlines()
    assert plan[0].startswith("begun ") and plan[0].endswith("of 3 blocks)"), plan
    again = f.call(f.command("stopped", *more))
    assert "block 1/3, epoch 1/40" not in again.stderr, again.stderr
    assert [figures(r) for r in f.rows("stopped")] == [figures(r) for r in f.rows("whole")]


def test_a_task_has_its_machine_alone(f):
    """--parallel limits the tasks under Slurm. They divide no threads."""
    said = f.call(f.command("alone", "-j2", "--parallel", "2", "--cell", "1")).stderr
    assert ", 2 threads" in said and ", 1 threads" not in said, said


def test_results_that_are_not_listed_yet(f):
    """The report and the plan read what a process has left for the one that has the lock."""
    rows = list(f.reference().values())
    cells = f.path / "left" / "cells"
    cells.mkdir(parents=True)
    (f.path / "left" / "lock").touch()
    (f.path / "left" / "results.jsonl").write_text(json.dumps(rows[2]) + "\n")
    (cells / f"{rows[0]['hash']}.json").write_text(json.dumps(rows[0]))
    assert [row[0] for row in page(f, "left")[1:]] == ["full method", "plain"]
    plan = f.call(f.command("left", "--plan")).stdout.splitlines()
    assert [line.split()[0] for line in plan] == ["done", "to", "done"], plan
    assert (cells / f"{rows[0]['hash']}.json").exists()
    (f.path / "left" / "results.jsonl").unlink()
    assert [row[0] for row in page(f, "left")[1:]] == ["full method"]
    f.call(f.command("left", "--cell", "2"))
    assert [r["name"] for r in f.rows("left")] == ["full method", rows[1]["name"]]
    assert not list(cells.iterdir())


def test_texts_are_tokenized_once(f):
    tiny.make_text(f.path / "changing.txt", 900)
    more = ["--data", "changing.txt", "--cell", "2"]
    read = lambda said: [line for line in said.splitlines() if line.startswith("text:")]
    first = read(f.call(f.command("share", *more)).stderr)
    assert len(first) == 2 and not any("/shared/" in line for line in first), first
    kept = {p.name: p.read_bytes() for p in (f.path / "share/shared").iterdir()}
    assert len(kept) == 3 and "checkpoint" in kept, list(kept)
    second = read(f.call(f.command("share", *more)).stderr)
    assert len(second) == 2 and all("/shared/" in line for line in second), second
    # A changed text of the same size and time is read again.
    path = f.path / "changing.txt"
    before, text = path.stat(), path.read_text()
    path.write_text(text[:-4] + "abc\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    third = read(f.call(f.command("share", *more)).stderr)
    assert sum("/shared/" in line for line in third) == 1, third
    # A damaged file is ignored and replaced.
    for file in (f.path / "share/shared").glob("*.tokens"):
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    fourth = read(f.call(f.command("share", *more)).stderr)
    assert not any("/shared/" in line for line in fourth), fourth
    fifth = read(f.call(f.command("share", *more)).stderr)
    assert all("/shared/" in line for line in fifth), fifth


def test_changed_weights_are_read_again(f):
    tiny.make_model(f.path / "m2", num_hidden_layers=3, seed=5)
    hashes = []
    for seed in (5, 6):
        tiny.write_safetensors(f.path / "m2" / "model.safetensors",
                               tiny.model_tensors({**tiny.CONFIG, "num_hidden_layers": 3}, seed))
        hashes.append(f.call([*f.command("weights", "--print-cells"), "-m", "m2"]).stdout.split()[1])
    assert hashes[0] != hashes[1], hashes


def test_what_several_processes_cannot_read(f):
    os.mkfifo(f.path / "pipe")
    for name in ("pipe", "-"):
        for way in ("--print-cells", "--slurm", "--cell=1"):
            done = f.call(f.command("piped", way, "--data", name), want=2)
            assert "must be a regular file" in done.stderr, done.stderr


def test_failed_cells(f):
    bad = SWEEP.replace("cells:", "cells:\n  - {name: bad, set: {calibration.seqlen: 1048576}}")
    (f.path / "failing.yaml").write_text(bad)
    done = f.call(f.command("failing", "--cell", "1", file="failing.yaml"), want=2)
    assert "cell 'bad': " in done.stderr, done.stderr
    plan = f.call(f.command("failing", "--plan", file="failing.yaml")).stdout.splitlines()
    assert plan[0].startswith("failed ") and "  bad: " in plan[0] and "1048576" in plan[0], plan
    assert all(line.startswith("to do ") for line in plan[1:]), plan


def test_bad_numbers_and_places(f):
    done = f.call(f.command("bad-number", "--cell", "4"), want=2)
    assert "--cell 4: s.yaml has 3 cells" in done.stderr, done.stderr
    (f.path / "mine" / "cells").mkdir(parents=True)
    (f.path / "mine" / "cells" / "a.txt").write_text("x")
    for way in ("--print-cells", "--slurm", "--cell=1"):
        done = f.call(f.command("mine", way), want=2)
        assert "holds something that is not a sweep" in done.stderr, done.stderr
    assert sorted(p.name for p in (f.path / "mine").rglob("*")) == ["a.txt", "cells"]


def with_sbatch(f, args, want=0, **env):
    bin_dir = f.path / "bin"
    bin_dir.mkdir(exist_ok=True)
    (bin_dir / "sbatch").write_text(SBATCH)
    (bin_dir / "sbatch").chmod(0o755)
    done = subprocess.run(args, cwd=f.path, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "PATH": f"{bin_dir}:{os.environ['PATH']}", **env})
    assert done.returncode == want, done.stderr
    words = json.loads((f.path / "sbatch.json").read_text()) if (f.path / "sbatch.json").exists() else None
    (f.path / "sbatch.json").unlink(missing_ok=True)
    return done, words


def test_submission(f):
    """An odd name of OUT, a cell that is done, more options, a limit on tasks at the same time."""
    f.reference()
    out = "50% of 'a b'"
    f.call(f.command(out, "--cell", "2"))
    done, words = with_sbatch(f, [*f.command(out, "--slurm=--mem=2G  --time=5", "--parallel", "2")])
    assert "2 cells submitted" in done.stderr, done.stderr
    assert words == ["--job-name=wkvq-sweep", "--requeue", "--open-mode=append", "--output=50%% of 'a b'/logs/%A_%a.log",
                     "--array=1,3%2", "--mem=2G", "--time=5", f"{out}/slurm.sh"], words
    same_as_reference(f, out)
    _, words = with_sbatch(f, f.command("wide", "--slurm", "--parallel", "1024"))
    assert "--array=1-3%1024" in words, words
    same_as_reference(f, "wide")
    done, words = with_sbatch(f, f.command(out, "--slurm"))
    assert words is None and "all cells are done" in done.stderr, (words, done.stderr)
    _, words = with_sbatch(f, f.command("--wrap=id", "--slurm"))
    assert "--array=1-3" in words and words[-1] == "./--wrap=id/slurm.sh", words
    same_as_reference(f, "--wrap=id")


def later(f, script, task, want):
    """Runs a task of a submitted job, of whose script sbatch keeps a copy."""
    return f.call(["sh", "-c", script], want, env={**os.environ, "SLURM_ARRAY_TASK_ID": str(task)})


def test_a_file_that_changes_before_a_task_starts(f):
    """No task runs another cell than the one that was submitted under its number."""
    rows = list(f.reference().values())
    (f.path / "edited.yaml").write_text(SWEEP)
    with_sbatch(f, f.command("edited", "--slurm", file="edited.yaml"), SBATCH_WAITS="1")
    script = (f.path / "edited/slurm.sh").read_text()
    about = (f.path / "edited/sweep.json").read_text()
    new = "cells:\n  - {name: new, set: {weights.bits: 3}}"
    for text in (SWEEP.replace("cells:", new), SWEEP.replace("epochs: 2", "epochs: 1").replace("set: {weights.b", "set: {kv.sink: 1, weights.b"),
                 SWEEP[:SWEEP.index("cells:")] + new + "\neval: {data: eval.txt, windows: 4, ctx: 64}\n"):
        (f.path / "edited.yaml").write_text(text)
        for task in (1, 2, 3, 4):
            said = later(f, script, task, 2).stderr
            assert f"--cell {task}: not the cell that was submitted" in said and "; submit it again" in said, said
    assert not (f.path / "edited/results.jsonl").exists() and (f.path / "edited/sweep.json").read_text() == about
    # a cell behind the others changes none of them, nor does another name
    (f.path / "edited.yaml").write_text(SWEEP.replace("eval: {", "  - {name: new, set: {weights.bits: 3}}\neval: {").replace("plain", "flat"))
    for task in (1, 2, 3):
        later(f, script, task, 0)
    assert [r["hash"] for r in f.rows("edited")] == [r["hash"] for r in rows]


def test_expected_cells(f):
    """Both hashes of a cell name it, for a machine may resolve run.compute otherwise."""
    row = list(f.reference().values())[0]
    for way in ("hash", "spec"):
        f.call(f.command("reference", "--cell", "1", "--expect", row[way]))
        f.call(f.command("reference", "--cell", "2", "--expect", row[way]), want=2)
    assert row["hash"] != row["spec"] and row["hash"] in f.call(f.command("expected", "--print-cells")).stdout
    assert "give --cell N" in f.call(f.command("reference", "--expect", row["hash"]), want=2).stderr


def test_submission_fails(f):
    done, _ = with_sbatch(f, f.command("refused", "--slurm"), want=1, SBATCH_STATUS="1")
    assert "nothing was submitted: sbatch failed" in done.stderr, done.stderr
    done = subprocess.run(f.command("none", "--slurm"), cwd=f.path, capture_output=True, text=True, env={"PATH": "/nowhere"})
    assert done.returncode == 2 and "sbatch: no such program" in done.stderr, done.stderr


if __name__ == "__main__":
    harness.main(globals(), Fixture)
