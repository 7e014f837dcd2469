#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""kill -9 at seeded instants of the demo model's jobs: test_kill.py WKVQ_FAULT DEMO_DIR DEMO_YAML [--instants N] [--seed S] [-j N].

An instant is the Nth call that changes a file or a name, the middle of the Nth write, or a time. A run is killed up to three times
and then completes. It must end with the bytes of a run that was never killed, and no file may have been
incomplete under its final name."""
import argparse
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

from crash_bench import Job, Wrong, in_threads, scratch, settings

SMALL = {"calibration.samples": 4, "calibration.seqlen": 64, "calibration.epochs": 2}

# Calibration is short, so that most instants fall into the refinement.
SHORT = {"calibration.epochs": 1, "crr.blocks": 0}
REFINE = {"refine.samples": 3, "refine.seqlen": 48, "refine.guard": 2, "refine.batch": 1, "refine.epochs": 2}


def make_jobs(wkvq, demo, config, folder):
    text = ["--data", f"{demo}/calibration.txt", "--config", config, "-j1", *settings(SMALL)]
    jobs = [
        Job("keep", [wkvq, "quantize", demo, "-o", "out", "--keep-state", *text]),
        Job("quantize", [wkvq, "quantize", demo, "-o", "out", *text]),
        Job("calibrate", [wkvq, "calibrate", demo, "-o", "out.state", *text]),
        Job("refine", [wkvq, "calibrate", demo, "-o", "out.state", *text, *settings(SHORT), *settings(REFINE)]),
        Job("convert", [wkvq, "convert", demo, "--state", "out.state", "-o", "out", "-j1"],
            {"out.state": folder / "calibrate" / "out.state"}),
        Job("replace", [wkvq, "convert", demo, "-o", "out", "--force", "-j1"],
            {"out": folder / "convert" / "out"}),
        Job("export", [wkvq, "export", "artifact", "--format", "awq", "--kv", "drop", "-o", "out", "-j1"],
            {"artifact": folder / "convert" / "out"}),
        Job("refine-artifact", [wkvq, "refine", demo, "artifact", "-o", "out", "--keep-state", "--data",
                                f"{demo}/calibration.txt", "-j1", *settings(REFINE)],
            {"artifact": folder / "convert" / "out"}),
    ]
    for job in jobs:
        (folder / job.name).mkdir()
        began = time.monotonic()
        job.learn(folder / job.name)
        job.seconds = time.monotonic() - began
    jobs[1].blocks = jobs[0].want  # the same state, which is gone at its end
    return jobs


def draw_instant(rng, job, part):
    """part: the share of the whole run; a resumed one is shorter."""
    way = rng.choice(("file", "file", "write", "time"))
    if way == "time":
        return rng.uniform(0, part * job.seconds)
    n = rng.randint(1, max(1, int(part * job.calls[way])))
    return f"{way}:{n}:{'half' if way == 'write' else 'kill'}"


def draw_chains(rng, jobs, instants):
    """Returns chains of one to three instants each, `instants` in all, for the jobs in turn."""
    chains = []
    while instants:
        n = min(rng.choice((1, 1, 2, 3)), instants)
        job = jobs[len(chains) % len(jobs)]
        chains.append((job, [draw_instant(rng, job, 1 / (i + 1)) for i in range(n)]))
        instants -= n
    return chains


def run_killed(job, folder, instant):
    """Returns True if the run was killed, False if it had ended before."""
    if isinstance(instant, str):
        return job.run(folder, fault=instant).returncode == -signal.SIGKILL
    process = subprocess.Popen(job.args, cwd=folder, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    time.sleep(instant)
    process.kill()
    return process.wait() == -signal.SIGKILL


def try_chain(job, instants, root):
    hits = 0
    with tempfile.TemporaryDirectory(dir=root) as name:
        job.lay_out(name)
        try:
            for instant in instants:
                hit = run_killed(job, name, instant)
                if not hit and instant is instants[0] and isinstance(instant, str):
                    raise Wrong("it was not killed")
                hits += hit
                job.check_remains(name)
            job.check_end(name)
        except Wrong as e:
            return hits, f"{job.name} killed at {', '.join(map(str, instants))}: {e}"
    return hits, None


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("wkvq")
    parser.add_argument("demo")
    parser.add_argument("config")
    parser.add_argument("--instants", type=int, default=48)
    parser.add_argument("--seed", type=int, default=20240212)
    parser.add_argument("-j", type=int, default=os.cpu_count())
    a = parser.parse_args()
    wkvq, demo, config = (str(pathlib.Path(p).resolve()) for p in (a.wkvq, a.demo, a.config))
    with scratch() as name:
        jobs = make_jobs(wkvq, demo, config, pathlib.Path(name))
        chains = draw_chains(random.Random(a.seed), jobs, a.instants)
        began = time.monotonic()
        results = in_threads(lambda c: try_chain(*c, name), chains, a.j)
        seconds = time.monotonic() - began
    bad = [problem for _, problem in results if problem]
    for problem in bad:
        print("FAIL", problem)
    hits = sum(n for n, _ in results)
    print(f"{hits} of {a.instants} kills hit a running process in {len(chains)} jobs, {len(bad)} wrong, "
          f"{seconds:.0f} s, seed {a.seed}")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
