#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Ctrl-C at every change of a file: test_stop.py WKVQ_FAULT [--calls N] [--seed S] [-j N] [--only JOB].

A command that writes a directory or a file of weights ends with status 130 and says what it keeps, and nothing of its
own is left beside its output; or the signal came so late that the output is whole. Then the same command ends with the
bytes of a run without a signal. N limits the calls of a command, which are drawn with the seed; "all" uses every one."""
import argparse
import os
import pathlib
import random
import sys
import tempfile

from crash_bench import SMALL, Job, Wrong, first_difference, in_threads, make_model, scratch, settings, tiny, tree
from test_faults import engine_jobs, learn

NOTHING = "nothing was kept since this run began; run the same command again"
KEPT = ("has the finished work, and the same command continues from there", "Run the same command again to continue.")


def make_jobs(wkvq, folder):
    make_model(folder / "model")
    tiny.make_text(folder / "text.txt", 400)
    model, text = str(folder / "model"), str(folder / "text.txt")
    quantize = Job("quantize", [wkvq, "quantize", model, "--data", text, "-o", "out", "--keep-state", "-j1",
                                *settings(SMALL)])
    rounding = Job("rounding", [wkvq, "convert", model, "-o", "out", "-j1", *settings(
        {"weights.group_size": 16, "kv.group_size": 8})])
    whole = Job("whole", [wkvq, "convert", model, "-o", "out", "-j1", *settings({"weights.group_size": 0})])
    for job in (quantize, rounding, whole):
        learn(job, folder)
    made = {name: folder / name / "out" for name in ("rounding", "whole")}
    jobs = [Job("replace", [wkvq, "convert", model, "--state", "out.state", "-o", "out", "--force", "-j1"],
                {"out.state": folder / "quantize" / "out.state", "out": made["rounding"]}),
            Job("export", [wkvq, "export", "artifact", "--format", "compressed-tensors", "-o", "out", "-j1"],
                {"artifact": made["whole"]}),
            Job("synth", [wkvq, "synth", "--shape", "smollm2-135m", "--layers", "1", "--shard", "30MB", "-o", "out", "-j1"]),
            *engine_jobs(wkvq, folder)]
    for job in jobs:
        learn(job, folder)
    return [quantize, rounding, *jobs]


def leftovers(job, folder):
    """What the run left that was not there before and is no finished work."""
    kept = [name for name in tree(folder) if not name.startswith("out.state") or job.name != "quantize"]
    return sorted(set(kept) - set(job.old))


def check(job, folder, done):
    stderr = done.stderr.decode(errors="replace")
    if done.returncode not in (0, 130) or "Sanitizer" in stderr:
        raise Wrong(f"exit {done.returncode}")
    if done.returncode == 0:
        problem = first_difference(tree(folder), job.want)
        if problem:
            raise Wrong(f"it ended as if nothing had happened, but {problem}")
        return
    if NOTHING not in stderr and not (job.name == "quantize" and any(kept in stderr for kept in KEPT)):
        raise Wrong("it does not say what is kept")
    whole = {n for n in job.want if n.split("/")[0] == "out"}
    left = leftovers(job, folder)
    if left and not (job.name == "quantize" and set(left) == whole):  # stopped between artifact and verification
        raise Wrong(f"it left {left}")


def try_stop(job, n, root):
    with tempfile.TemporaryDirectory(dir=root) as name:
        folder = pathlib.Path(name)
        job.lay_out(folder)
        done = job.run(folder, fault=f"file:{n}:stop")
        try:
            check(job, folder, done)
            job.check_end(folder)
        except Wrong as e:
            return done.returncode, f"{job.name}, stop at {n} of {job.calls['file']}: {e}\n{done.stderr.decode()}"
        return done.returncode, None


def main():
    p = argparse.ArgumentParser()
    p.add_argument("wkvq")
    p.add_argument("--calls", default="24")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--only")
    p.add_argument("-j", type=int, default=min(8, os.cpu_count() or 1))
    options = p.parse_args()
    rng = random.Random(options.seed)
    failed = 0
    with scratch() as name:
        root = pathlib.Path(name)
        for job in make_jobs(str(pathlib.Path(options.wkvq).resolve()), root):
            if options.only not in (None, job.name):
                continue
            calls = range(1, job.calls["file"] + 1)
            if options.calls != "all":
                most = int(options.calls) if job.name != "synth" else 4  # it writes 60 MB
                calls = sorted(rng.sample(calls, min(most, len(calls))))
            results = in_threads(lambda n, job=job: try_stop(job, n, root), list(calls), options.j)
            stopped = sum(status == 130 for status, _ in results)
            for problem in (problem for _, problem in results if problem):
                failed += 1
                print("FAIL", problem)
            print(f"{job.name}: {len(results)} signals, {stopped} runs stopped", flush=True)
            failed += stopped == 0
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
