#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Files that only look like wkvq's own are never touched: test_lookalikes.py WKVQ_FAULT [--kills N] [--seed S] [-j N] [--only JOB].

Every command that writes runs in a folder full of names that resemble its own: one wrong character, dated, in upper
case, links, directories. It is killed at random calls and instants, and then finishes. Each look-alike must keep its kind,
mode, content, target and time of change. Then the same names are put into the command's own output and state, where it
must refuse or keep them, unchanged."""
import argparse
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time

from crash_bench import SMALL, in_threads, scratch, settings, tiny

SWEEP = """
base: {calibration: {samples: 4, seqlen: 24, epochs: 1}, weights.group_size: 16, kv.group_size: 8, crr.blocks: 1}
cells:
  - {name: learned}
  - {name: plain, set: {weights: {method: rtn}, kv.method: token}}
eval: {data: TEXT, windows: 2, ctx: 24}
"""
REFINE = {"refine.samples": 2, "refine.seqlen": 24, "refine.guard": 2}
# Beside an output of each name: {} is the name. With a slash at the end: a directory with files in it.
BESIDE = ["{}.tmp.123/", "{}.tmp.4194999/", "{}.tmp.20240101/", "{}.tmp.4711-1a2b-00000000/", "{}.tmp.4711-1a2b-0000000/",
          "{}.tmp.1/", "{}.tmp/", "{}.tmp.9.txt", "{}.old.20240101/", "{}.old.4194999/", "{}.old/", "{}.OLD.1/", "{}~", "{}.bak/",
          "{}.tmp.77", "{}.old.77", "{}.tmp.4711-1a2b-0a0b0c0d", "{}.tmp.-1", "{}.tmp.", "{}2/", "x{}/", "{}.state.old/",
          "{}.state.tmp.5/", "{}.state~", "{}.work.old/", ".{}.tmp.3/", "{}.tmp.8.state/"]
ANYWHERE = [".wkvq.tmp.123/", ".wkvq-probe", ".wkvq-probe.tmp.99", ".wkvq-state.old/", "lock.bak", "manifest.json~",
            "manifest.json.tmp.123", "config.json.tmp.5", "owner", "commit", "retired"]
# Inside a directory of wkvq: names that nearly equal those of a state, an artifact and a sweep.
INSIDE = ["partial-results.csv", "block-notes.txt", "block-0001.safetensors~", "block-001.safetensors", "block-00001.safetensors",
          "BLOCK-0001.safetensors", "block-9999.safetensors.bak", "partial-c.safetensors", "partial-a.safetensors.old",
          "stream-quantized", "stream-quantized.tmp.123", "lock.bak", "LOCK", "lock~", "manifest.json~", "manifest.json.tmp.123",
          "Manifest.json", "model.safetensors.tmp.5", "model-00001-of-00002.safetensors~", "model-1-of-2.safetensors",
          "config.json.old", "README.md", "results.csv.bak", "results.jsonl.tmp.8", "block-0001.safetensors.d/"]


def put(path, link=None):
    """Makes one look-alike with its content; link None: every third file is a link."""
    target = pathlib.Path(str(path).rstrip("/"))
    link = len(target.name) % 3 == 0 if link is None else link
    if target.exists() or target.is_symlink():
        return []
    if str(path).endswith("/"):
        (target / "deep").mkdir(parents=True)
        for name in ("model.safetensors", "manifest.json", "config.json", "owner", "deep/thesis.tex"):
            (target / name).write_text(f"precious {name}")
        return [target, *sorted(target.rglob("*"))]
    if link:
        target.symlink_to("no-such-file" if len(target.name) % 2 else "text.txt")
    else:
        target.write_text(f"precious {target.name}")
        target.chmod(0o640)
    return [target]


def lay(folder, names):
    for name in names:
        yield from put(f"{folder}/{name}")


def state_of(path):
    s = os.lstat(path)
    kind = stat.S_IFMT(s.st_mode)
    inside = (os.readlink(path) if kind == stat.S_IFLNK else sorted(os.listdir(path)) if kind == stat.S_IFDIR else
              hashlib.sha256(path.read_bytes()).hexdigest())
    return s.st_mode, s.st_mtime_ns, s.st_ino, inside


def picture(paths):
    return {p: state_of(p) for p in paths}


def changed(before):
    """Returns the first look-alike that has changed, or None."""
    for path, want in before.items():
        try:
            if state_of(path) != want:
                return f"{path} has changed"
        except FileNotFoundError:
            return f"{path} is gone"
    return None


class Job:
    """A command in a folder: args after wkvq; out: the outputs' names; group: it has children, so kill the whole group."""

    def __init__(self, name, args, out, cwd=".", before=(), group=False):
        self.name, self.args, self.out, self.cwd, self.before, self.group = name, args, out, cwd, before, group
        self.calls, self.seconds = 0, 0.0


def make_jobs(b):
    model, text = str(b.root / "model"), str(b.root / "text.txt")
    rtn = ["-j1", *settings({"weights.group_size": 16, "kv.group_size": 8})]
    learn = ["--data", text, "-j1", *settings(SMALL)]
    done = b.root / "done"
    tune = ["tune", model, "--max-ppl-increase", "99%", "--data", text, "--eval", text, "--ctx", "24", "--seqlen", "24",
            "--windows", "2", "-o", "best.yaml", "-j1"]
    return [
        Job("convert", ["convert", model, "-o", "out", *rtn], ["out"]),
        Job("replace", ["convert", model, "-o", "out", "--force", *rtn], ["out"], before=[(done / "another", "out")]),
        Job("here", ["convert", model, "-o", ".", "--force", *rtn], ["out"], cwd="out", before=[(done / "another", "out")]),
        Job("calibrate", ["calibrate", model, "-o", "st", *learn], ["st"]),
        Job("quantize", ["quantize", model, "-o", "out", *learn], ["out"]),
        Job("quantize here", ["quantize", model, "-o", ".", *learn], ["out"], cwd="out", before=[(None, "out")]),
        Job("quantize over", ["quantize", model, "-o", "out", "--force", *learn], ["out"], before=[(done / "another", "out")]),
        Job("refine", ["refine", model, str(done / "nearest"), "-o", "out", "--data", text, "-j1", *settings(REFINE)], ["out"]),
        Job("synth", ["synth", "--shape", "smollm2-135m", "--layers", "1", "-o", "ck", "-j1"], ["ck"]),
        Job("export", ["export", str(done / "another"), "--format", "dense", "-o", "ex", "-j1"], ["ex"]),
        Job("sweep", ["sweep", str(b.root / "s.yaml"), "-m", model, "--data", text, "-o", "sw", "-j1"], ["sw"], group=True),
        Job("tune", tune, ["best.yaml"], group=True),
        Job("report", ["report", str(done / "sw"), "-o", "page.html"], ["page.html"]),
        Job("eval", ["eval", model, "--task", "zeroshot", "--data", str(b.root / "piqa.jsonl"), "--ctx", "200", "-o", "lines.jsonl",
                     "-j1"], ["lines.jsonl"]),
    ]


class Bench:

    def __init__(self, wkvq, root):
        self.wkvq, self.root = wkvq, root
        tiny.make_model(root / "model", num_hidden_layers=2)
        tiny.make_model(root / "other", seed=2, num_hidden_layers=2)
        tiny.make_text(root / "text.txt", 400)
        (root / "s.yaml").write_text(SWEEP.replace("TEXT", str(root / "text.txt")))
        (root / "piqa.jsonl").write_text(json.dumps({"goal": "Cut", "sol1": "a", "sol2": "bc", "label": "0"}) + "\n")
        (root / "done").mkdir()
        self.jobs = make_jobs(self)
        self.once([*"convert -o another -j1".split(), str(root / "other")], root / "done")
        self.once(["convert", str(root / "model"), "-o", "nearest", "-j1", *settings({"weights.group_size": 16})], root / "done")
        sweep = next(j for j in self.jobs if j.name == "sweep")
        self.once(sweep.args, root / "done")

    def once(self, args, cwd):
        done = subprocess.run([self.wkvq, *args], cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(args)}: exit {done.returncode}\n{done.stderr}")

    def lay_out(self, job, folder):
        for source, name in job.before:
            shutil.copytree(source, folder / name) if source else (folder / name).mkdir()
        names = [n.format(out) for out in job.out for n in BESIDE]
        return picture(lay(folder, [*names, *ANYWHERE]))

    def start(self, job, folder, **env):
        return subprocess.Popen([self.wkvq, *job.args], cwd=folder / job.cwd, env=dict(os.environ, **env),
                                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)

    def learn(self, job):
        with tempfile.TemporaryDirectory(dir=self.root) as name:
            folder = pathlib.Path(name)
            before = self.lay_out(job, folder)
            began = time.monotonic()
            process = self.start(job, folder, FAULT_COUNT=str(folder / "count"))
            _, err = process.communicate(timeout=300)
            job.seconds = time.monotonic() - began
            if process.returncode or changed(before):
                raise SystemExit(f"{job.name}: exit {process.returncode}, {changed(before)}\n{err.decode()}")
            calls = dict(line.split() for line in (folder / "count").read_text().splitlines())
            job.calls = int(calls["file"])


def kill_once(b, job, folder, instant):
    by_call = isinstance(instant, int)
    process = b.start(job, folder, **({"FAULT": f"file:{instant}:kill"} if by_call else {}))
    if not by_call:
        time.sleep(instant)
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    process.communicate(timeout=300)
    return process.returncode


def draw(rng, job):
    if job.group or rng.random() < 0.3:
        return rng.uniform(0, job.seconds)
    return rng.randint(1, job.calls)


def is_finished(job, folder):
    """Was the kill after the last call of a quantize or refine? The artifact is whole then, and the state is gone."""
    return job.name.startswith(("quantize", "refine")) and (folder / "out/manifest.json").exists() and not (
        (folder / "out.state").exists() or (folder / "out/.wkvq-state").exists())


def trial(b, job, instants):
    """Returns the number of kills that hit, and the errors."""
    with tempfile.TemporaryDirectory(dir=b.root) as name:
        folder = pathlib.Path(name)
        before = b.lay_out(job, folder)
        hits, whole = 0, job.name == "convert"  # a kill may come after the artifact
        for instant in instants:
            status = kill_once(b, job, folder, instant)
            hits += status == -signal.SIGKILL
            whole = whole or status == 0 or is_finished(job, folder)
            wrong = changed(before)
            if wrong:
                return hits, f"{job.name} killed at {instants}: {wrong}"
        process = b.start(job, folder)
        _, err = process.communicate(timeout=300)
        ended = process.returncode == 0 or (process.returncode == 2 and b"--force" in err and whole) or (
            job.name in ("synth", "export") and process.returncode == 2 and b"exists and holds" in err)
        wrong = changed(before) or (None if ended else f"exit {process.returncode}: {err.decode()}")
        if not wrong and job.name not in ("sweep", "tune"):
            left = [p.name for p in folder.iterdir() if p not in before and p.name not in ("out", "st", "ck", "ex", *job.out)]
            wrong = f"left behind: {left}" if left else None
        return hits, f"{job.name} killed at {instants}, then run: {wrong}" if wrong else None


def refusal(b, job, where, name, link):
    """One look-alike in a finished or half finished output: the command refuses or keeps it."""
    with tempfile.TemporaryDirectory(dir=b.root) as top:
        folder = pathlib.Path(top)
        b.lay_out(job, folder)
        kill_once(b, job, folder, job.seconds / 2 if job.group else max(1, job.calls // 2))
        target = folder / where
        target.mkdir(exist_ok=True, parents=True)
        before = picture(put(f"{target}/{name}", link))
        process = b.start(job, folder)
        _, err = process.communicate(timeout=300)
        wrong = changed(before)
        if not wrong and before and process.returncode == 0 and job.name != "sweep":
            wrong = "it was taken for wkvq's own"
        if not wrong and process.returncode not in (0, 2):
            wrong = f"exit {process.returncode}: {err.decode()}"
        return 0, f"{job.name}, {where}/{name}: {wrong}" if wrong else None


def refusals(rng, jobs, n):
    places = {"convert": ["out"], "replace": ["out"], "here": ["out"], "calibrate": ["st"], "quantize": ["out.state", "out"],
              "refine": ["out.state", "out"],
              "synth": ["ck"], "export": ["ex"], "sweep": ["sw", "sw/cells"]}
    for name in INSIDE:  # what a state would have to know by its whole name
        yield from ((job, "st", name, False) for job in jobs if job.name == "calibrate")
    for _ in range(n):
        job = rng.choice([j for j in jobs if j.name in places])
        yield job, rng.choice(places[job.name]), rng.choice(INSIDE), rng.random() < 0.3


def chains(rng, jobs, kills):
    while kills > 0:
        for job in jobs:
            n = min(rng.choice((1, 1, 2, 3)), kills)
            kills -= n
            if n > 0:
                yield job, [draw(rng, job) for _ in range(n)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("wkvq")
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--refusals", type=int, default=24)
    parser.add_argument("--seed", type=int, default=20240212)
    parser.add_argument("--only")
    parser.add_argument("-j", type=int, default=os.cpu_count())
    a = parser.parse_args()
    rng = random.Random(a.seed)
    with scratch() as name:
        b = Bench(str(pathlib.Path(a.wkvq).resolve()), pathlib.Path(name))
        jobs = [j for j in b.jobs if a.only in (None, j.name)]
        for job in jobs:
            b.learn(job)
        began = time.monotonic()
        work = [(trial, c) for c in chains(rng, jobs, a.kills)]
        work += [(refusal, r) for r in refusals(rng, jobs, a.refusals)] if not a.only else []
        results = in_threads(lambda w: w[0](b, *w[1]), work, a.j)
        seconds = time.monotonic() - began
    bad = [problem for _, problem in results if problem]
    for problem in bad:
        print("FAIL", problem)
    print(f"{a.kills} kills, {sum(n for n, _ in results)} of them in a running process, {len(work)} folders of look-alikes, "
          f"{len(bad)} wrong, {seconds:.0f} s, seed {a.seed}")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
