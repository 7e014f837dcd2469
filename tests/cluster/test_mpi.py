#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Calibrations by several processes under mpirun: test_mpi.py WKVQ DEMO mpi|none [TEST...].

With a build without MPI only the refusal is tested, and the exit status is 77."""
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "cli"))
import processes

KILLS = 4
SETTINGS = ["calibration.samples=10", "calibration.seqlen=96", "calibration.epochs=3", "calibration.batch=4",
            "calibration.eval_samples=5", "weights.round=learned", "run.compute=f32", "crr.blocks=1"]


class Fixture:
    def __init__(self, wkvq, demo, folder):
        self.wkvq, self.demo, self.path = wkvq, pathlib.Path(demo), pathlib.Path(folder)
        self.env = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}

    def wkvq_args(self, out, command="calibrate", text="calibration.txt", more=()):
        sets = [word for s in [*SETTINGS, *more] for word in ("--set", s)]
        return [self.wkvq, command, self.demo, "--data", self.demo / text, "-o", out, "-j1", *sets]

    def args(self, n, out, **options):
        return ["mpirun", "--oversubscribe", "-n", str(n), *self.wkvq_args(out, **options)]

    def start(self, args):
        return subprocess.Popen(args, cwd=self.path, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, args, want=0):
        done = subprocess.run(args, cwd=self.path, env=self.env, capture_output=True, text=True, timeout=500)
        assert done.returncode == want, (done.returncode, done.stdout, done.stderr)
        return done

    def blocks(self, out):
        """Returns the blocks of a state and their losses."""
        path = self.path / out
        done = json.loads((path / "manifest.json").read_text())["done"]
        files = {p.name: p.read_bytes() for p in path.glob("block-*")}
        assert len(files) == len(done) == 4, list(files)
        return files, done

    def reference(self):
        if not (self.path / "reference").exists():
            began = time.monotonic()
            self.run(self.wkvq_args("reference"))
            self.seconds = time.monotonic() - began
        return self.blocks("reference")


def ranks_of(process):
    """Rank -> pid of the ranks that an mpirun has started."""
    found = {}
    for folder in pathlib.Path("/proc").iterdir():
        try:
            if not folder.name.isdigit() or int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1]) != process.pid:
                continue
            env = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        for entry in env:
            if entry.startswith(b"OMPI_COMM_WORLD_RANK="):
                found[int(entry.split(b"=")[1])] = int(folder.name)
    return found


def wait_for_ranks(process, n):
    while len(ranks_of(process)) < n and process.poll() is None:
        time.sleep(0.01)


def test_same_bytes(f):
    want = f.reference()
    for n in (1, 2, 3, 4):
        f.run(f.args(n, f"ranks-{n}"))
        assert f.blocks(f"ranks-{n}") == want, n


def test_start_values(f):
    """Searches and GPTQ read the samples of all ranks."""
    for name, more in {"search": ["weights.init=search", "kv.init=search", "weights.round=nearest"],
                       "gptq": ["weights.method=gptq"]}.items():
        f.run(f.wkvq_args(f"{name}-1", more=more))
        f.run(f.args(3, f"{name}-3", more=more))
        assert f.blocks(f"{name}-1") == f.blocks(f"{name}-3"), name


def test_quantize(f):
    """Rank 0 continues alone: one artifact, verified once."""
    f.run(f.wkvq_args("alone", command="quantize"))
    done = f.run(f.args(2, "together", command="quantize"))
    assert done.stdout.count("verdict     passed") == 1, done.stdout
    for name in ("model.safetensors", "config.json"):
        assert (f.path / "alone" / name).read_bytes() == (f.path / "together" / name).read_bytes(), name


def kill_a_rank(f, rng, out, within):
    """Kills a random rank at a random instant of a run. All end. Returns False if the run was finished before."""
    n = rng.choice([2, 3, 4])
    process = f.start(f.args(n, out))
    wait_for_ranks(process, n)
    time.sleep(rng.uniform(0, within))
    victim = ranks_of(process).get(rng.randrange(n))
    if victim:
        processes.send(victim, signal.SIGKILL)
    said = process.communicate(timeout=200)[1]
    assert not ranks_of(process), said
    assert process.returncode == 0 or any(w in said for w in ("exited on signal 9", "stopped in block", "stopped before")), said
    return process.returncode != 0


def test_killed_ranks(f):
    """A rank is killed at random instants, and other numbers of ranks resume. A run that finishes first begins again, and
    is killed within half the time."""
    want = f.reference()
    rng = random.Random(11)
    killed, within = 0, 1.2 * f.seconds
    while killed < KILLS:
        if kill_a_rank(f, rng, "killed", within):
            killed += 1
        else:
            shutil.rmtree(f.path / "killed")
            within /= 2
    f.run(f.args(3, "killed"))
    assert f.blocks("killed") == want


def test_a_signal_stops_all_ranks(f):
    want = f.reference()
    more = {"more": ["calibration.epochs=40"]}
    f.run(f.wkvq_args("long", **more))
    process = f.start(f.args(3, "signalled", **more))
    while not list(f.path.glob("signalled/partial-*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    assert processes.send(ranks_of(process)[1], signal.SIGTERM), "rank 1 has ended before the signal"
    said = process.communicate(timeout=200)[1]
    assert process.returncode == 130 and said.count("wkvq calibrate: stopped in block") == 1, said
    resumed = f.run(f.args(2, "signalled", **more)).stderr
    assert "block 1/4, epoch 1/40" not in resumed, resumed
    assert f.blocks("signalled") == f.blocks("long") and f.blocks("long") != want


def test_ranks_with_another_state(f):
    """A rank that sees an older state would begin at another step. It waits a minute for the right one."""
    more = {"more": ["calibration.epochs=40"]}
    process = f.start(f.wkvq_args("newer", **more))
    while not list(f.path.glob("newer/partial-*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=200)
    assert process.returncode == 130, process.returncode
    shutil.copytree(f.path / "newer", f.path / "older")
    manifest = json.loads((f.path / "older/manifest.json").read_text())
    process = f.start(f.wkvq_args("newer", **more))
    while json.loads((f.path / "newer/manifest.json").read_text()).get("partial") == manifest["partial"]:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=200)
    first, second = (f.wkvq_args(out, **more) for out in ("newer", "older"))
    done = subprocess.run(["mpirun", "--oversubscribe", "-n", "1", *first, ":", "-n", "1", *second], cwd=f.path, env=f.env,
                          capture_output=True, text=True, timeout=200)
    assert done.returncode == 2 and "rank 1: the state older is not the one that rank 0 has" in done.stderr, done.stderr


def test_ranks_with_another_text(f):
    first, second = (f.wkvq_args("mixed", text=text) for text in ("calibration.txt", "heldout.txt"))
    done = subprocess.run(["mpirun", "--oversubscribe", "-n", "1", *first, ":", "-n", "1", *second], cwd=f.path, env=f.env,
                          capture_output=True, text=True, timeout=200)
    assert done.returncode == 2 and "rank 1 has another model, text or configuration than rank 0" in done.stderr, done.stderr


def test_refusals(f):
    done = f.run(f.args(3, "small", more=["calibration.batch=2"]), want=2)
    assert "calibration.batch is 2, but there are 3 ranks" in done.stderr, done.stderr
    assert not (f.path / "small").exists()
    f.reference()
    done = f.run(["mpirun", "--oversubscribe", "-n", "2", f.wkvq, "refine", f.demo, "reference", "--data",
                  f.demo / "calibration.txt"], want=2)
    assert "refinement runs in one process" in done.stderr, done.stderr


def test_plan(f):
    done = f.run([*f.args(2, "planned"), "--plan"])
    assert done.stdout.count("memory ") == 1 and "each rank: 2 of the 4 samples of a step" in done.stderr, done.stderr
    assert "2 ranks are at most 1." in done.stderr and not (f.path / "planned").exists(), done.stderr


def refused_without_mpi(f):
    done = subprocess.run(f.wkvq_args("none"), cwd=f.path, env={**f.env, "OMPI_COMM_WORLD_SIZE": "2"}, capture_output=True,
                          text=True, timeout=100)
    assert done.returncode == 2 and "this build has no MPI, but mpirun has started 2 processes" in done.stderr, done.stderr
    assert not (f.path / "none").exists()


def main():
    wkvq, demo, build = sys.argv[1:4]
    with tempfile.TemporaryDirectory() as folder:
        f = Fixture(str(pathlib.Path(wkvq).resolve()), pathlib.Path(demo).resolve(), folder)
        if build == "none":
            refused_without_mpi(f)
        if build == "none" or not shutil.which("mpirun"):
            print("skipped:", "this build has no MPI" if build == "none" else "no mpirun")
            return 77
        failed = 0
        for name in sys.argv[4:] or [n for n in globals() if n.startswith("test_")]:
            try:
                globals()[name](f)
                print(f"ok {name}", flush=True)
            except Exception as e:  # every test gets its turn
                failed += 1
                print(f"FAIL {name}: {type(e).__name__}: {e}", flush=True)
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
