#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Calibrations by several processes under mpirun: test_mpi.py WKVQ WKVQ_EMU DEMO mpi|none [TEST...].

In WKVQ_EMU, `cuda` is the emulation. With a build without MPI only the refusal is tested, and the exit status is 77."""
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "cli"))
import harness
import processes
import tiny

KILLS = 20
SETTINGS = ["calibration.samples=10", "calibration.seqlen=96", "calibration.epochs=3", "calibration.batch=4",
            "calibration.eval_samples=5", "weights.round=learned", "run.compute=f32", "crr.blocks=1"]
SHORT = ["calibration.epochs=1", "weights.round=nearest"]
REFINE = ["refine.samples=10", "refine.seqlen=64", "refine.batch=4", "refine.guard=3", "refine.lr_round=0.02",
          "refine.learn=scales+norms+cache+rounding"]


class Fixture(harness.Bench):
    timeout = 500

    def __init__(self, wkvq, emu, demo, mpi, folder):
        super().__init__(wkvq, folder)
        self.emu, self.demo = str(pathlib.Path(emu).resolve()), pathlib.Path(demo).resolve()
        # Ranks that wait would take the processors from other ranks and tests. A rank that is killed may hold the lock of
        # PMIx's shared memory, for which mpirun then waits for ever; the other store has no such lock.
        self.env = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                    "OMPI_MCA_mpi_yield_when_idle": "1", "PMIX_MCA_gds": "hash"}
        if mpi == "none":
            refused_without_mpi(self)
            raise harness.Skip("this build has no MPI")
        if not shutil.which("mpirun"):
            raise harness.Skip("no mpirun")

    def wkvq_args(self, out, command="calibrate", text="calibration.txt", more=()):
        sets = [word for s in [*SETTINGS, *more] for word in ("--set", s)]
        return [self.wkvq, command, self.demo, "--data", self.demo / text, "-o", out, "-j1", *sets]

    def refine_args(self, source, *more):
        sets = [word for s in REFINE for word in ("--set", s)]
        return [self.wkvq, "refine", self.demo, source, "--data", self.demo / "calibration.txt", "-j1", *sets, *more]

    def args(self, n, out, **options):
        return self.ranks(n, self.wkvq_args(out, **options))

    def ranks(self, n, args):
        return ["mpirun", "--oversubscribe", "-n", str(n), *args]

    def start(self, args):
        return subprocess.Popen(args, cwd=self.path, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def blocks(self, out):
        """Returns the blocks of a state and their losses."""
        path = self.path / out
        done = json.loads((path / "manifest.json").read_text())["done"]
        files = {p.name: p.read_bytes() for p in path.glob("block-*")}
        assert len(files) == len(done) == 4, list(files)
        return files, done

    def refined(self, out):
        """Returns the refined blocks of a state, and what it says of them."""
        path = self.path / out
        files = {p.name: p.read_bytes() for p in path.glob("refined-*")}
        assert len(files) == 4, list(files)
        return files, json.loads((path / "manifest.json").read_text())["refined"]

    def calibrated(self):
        """Makes a state that is calibrated alone and not refined."""
        if not (self.path / "calibrated").exists():
            self.call(self.wkvq_args("calibrated", more=SHORT))
        return self.path / "calibrated"

    def artifact(self):
        """Makes the artifact of that state."""
        if not (self.path / "artifact").exists():
            self.call([self.wkvq, "convert", self.demo, "--state", self.calibrated(), "-o", "artifact"])
        return self.path / "artifact"

    def refined_reference(self):
        if not (self.path / "refined").exists():
            shutil.copytree(self.calibrated(), self.path / "refined")
            self.call(self.refine_args("refined"))
        return self.refined("refined")

    def reference(self):
        if not (self.path / "reference").exists():
            began = time.monotonic()
            self.call(self.wkvq_args("reference"))
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
        f.call(f.args(n, f"ranks-{n}"))
        assert f.blocks(f"ranks-{n}") == want, n


def emulated(f, n, out, *env, more=(), want=0, wrap=()):
    """Calibrates and refines on n emulated GPUs. Returns what is said."""
    if not (f.path / "tiny").exists():
        tiny.make_model(f.path / "tiny", num_hidden_layers=2)
        tiny.make_text(f.path / "text.txt", 1500)
    sets = ["calibration.samples=5", "calibration.seqlen=16", "calibration.epochs=1", "calibration.batch=4",
            "weights.group_size=16", "weights.round=learned", "crr.blocks=1", "refine.samples=5", "refine.seqlen=16",
            "refine.batch=4", "refine.guard=2", "refine.learn=scales+norms+cache+rounding", *more]
    return f.call(["env", "EMU_NAME=cuda", *env, *f.ranks(n, [
        *wrap, f.emu, "calibrate", "tiny", "--data", "text.txt", "-o", out, "--device", "cuda", *(w for s in sets for w in ("--set", s))])],
        want).stderr


def emulated_state(f, out):
    files = {p.name: p.read_bytes() for p in (f.path / out).glob("*-0*.safetensors")}
    assert len(files) == 4, list(files)
    return files


def test_emulated_gpus(f):
    """Each rank has a GPU. Gradients go between them by the stand-in of NCCL, else through the host."""
    emulated(f, 1, "emulated-1")
    want = emulated_state(f, "emulated-1")
    for n in (2, 3, 4):
        said = emulated(f, n, f"linked-{n}", "EMU_NCCL=22900")
        assert said.count("gradients go from GPU to GPU by NCCL 2.29.0") == 1 and "host memory" not in said, said
        assert emulated_state(f, f"linked-{n}") == want, n
    said = emulated(f, 3, "host")
    why = "rank 0: libnccl.so.2 was not found; install NCCL, or name the file in WKVQ_NCCL"
    assert said.count(f"gradients pass through host memory: {why}") == 1 and "GPU to GPU" not in said, said
    assert emulated_state(f, "host") == want


def test_gpus_that_cannot_be_linked(f):
    short = ["calibration.epochs=0", "refine.samples=0", "crr.blocks=0", "calibration.samples=4"]
    said = emulated(f, 2, "same", "EMU_NCCL=22900", "EMU_NUMBER=7", more=short)
    why = "ranks 0 and 1 have the same GPU"
    assert said.count(f"gradients pass through host memory: {why}") == 1 and "GPU to GPU" not in said, said
    differ = ["sh", "-c", 'EMU_NCCL=$((22900 + OMPI_COMM_WORLD_RANK)) exec "$0" "$@"']
    said = emulated(f, 2, "differ", more=short, wrap=differ)
    assert "host memory: ranks 0 and 1 have other versions of NCCL" in said and "GPU to GPU" not in said, said
    assert "by NCCL 2.7.8" in emulated(f, 2, "old", "EMU_NCCL=2708", more=short)
    # the others would wait for this rank inside NCCL
    said = emulated(f, 2, "fails", "EMU_NCCL=22900", "EMU_NCCL_FAILS_IN=1", more=short, want=1)
    assert "NCCL does not start: unhandled system error; WKVQ_NCCL=none" in said, said


def test_a_transfer_fails(f):
    """One rank finds it, and all end."""
    said = emulated(f, 2, "broken", "EMU_NCCL=22900", "EMU_NCCL_FAILS_IN=4", want=1)
    assert "transfer between GPUs: unhandled system error" in said, said


def test_start_values(f):
    """Searches add up the samples of all ranks, and GPTQ reads them."""
    for name, more in {"search": ["weights.init=search", "kv.init=search", "weights.round=nearest"],
                       "gptq": ["weights.method=gptq"]}.items():
        f.call(f.wkvq_args(f"{name}-1", more=more))
        f.call(f.args(3, f"{name}-3", more=more))
        assert f.blocks(f"{name}-1") == f.blocks(f"{name}-3"), name


def test_quantize(f):
    """Rank 0 continues alone: one artifact, verified once."""
    f.call(f.wkvq_args("alone", command="quantize"))
    done = f.call(f.args(2, "together", command="quantize"))
    assert done.stdout.count("verdict     passed") == 1, done.stdout
    for name in ("model.safetensors", "config.json"):
        assert (f.path / "alone" / name).read_bytes() == (f.path / "together" / name).read_bytes(), name


def test_refined_in_place(f):
    want = f.refined_reference()
    assert want[1]["best_step"] > 0, want[1]
    for n in (2, 3, 4):
        shutil.copytree(f.calibrated(), f.path / f"refined-{n}")
        f.call(f.ranks(n, f.refine_args(f"refined-{n}")))
        assert f.refined(f"refined-{n}") == want, n


def test_refined_in_one_go(f):
    """The ranks calibrate and then refine; a finished state stays as it is."""
    more = {"more": [*SHORT, *REFINE]}
    done = f.call(f.args(3, "one-go", **more))
    assert f.blocks("one-go")[0] == f.blocks(f.calibrated())[0] and f.refined("one-go") == f.refined_reference(), done.stderr
    f.call(f.args(2, "one-go", **more))
    assert f.refined("one-go") == f.refined_reference()


def test_refined_artifact(f):
    """Rank 0 imports the artifact, and writes the new one."""
    f.call(f.refine_args(f.artifact(), "-o", "better-1"))
    done = f.call(f.ranks(2, f.refine_args(f.artifact(), "-o", "better-2")))
    assert done.stdout.count("verdict     passed") == 1, done.stdout
    for name in ("model.safetensors", "config.json"):
        assert (f.path / "better-1" / name).read_bytes() == (f.path / "better-2" / name).read_bytes(), name


def kill_a_rank(f, rng, args, within):
    """Kills a random rank at a random instant of a run. All end. Returns False if the run was finished before."""
    n = rng.choice([2, 3, 4])
    process = f.start(f.ranks(n, args))
    wait_for_ranks(process, n)
    time.sleep(rng.uniform(0, within))
    victim = ranks_of(process).get(rng.randrange(n))
    if victim:
        processes.send(victim, signal.SIGKILL)
    said = process.communicate(timeout=200)[1]
    assert not ranks_of(process), said
    ends = ("exited on signal 9", "a non-zero exit code", "stopped in block", "blocks finished and saved", "stopped at step")
    assert process.returncode == 0 or any(w in said for w in ends), said
    return process.returncode != 0


def test_killed_ranks(f):
    """A rank is killed at random instants of calibration and refinement, and other numbers of ranks resume. A run that
    finishes first begins again, and is killed within half the time."""
    f.refined_reference()
    rng = random.Random(11)
    args = f.wkvq_args("killed", more=[*SHORT, *REFINE])
    began = time.monotonic()
    f.call(f.ranks(3, args))
    within = 1.2 * (time.monotonic() - began)
    shutil.rmtree(f.path / "killed")
    killed, share = 0, 1
    while killed < KILLS:
        if kill_a_rank(f, rng, args, share * within):
            killed, share = killed + 1, 1
        else:
            shutil.rmtree(f.path / "killed")
            share /= 2
    f.call(f.ranks(3, args))
    assert f.blocks("killed")[0] == f.blocks(f.calibrated())[0] and f.refined("killed") == f.refined_reference()


def test_a_signal_stops_all_ranks(f):
    want = f.reference()
    more = {"more": ["calibration.epochs=8"]}
    f.call(f.wkvq_args("long", **more))
    process = f.start(f.args(3, "signalled", **more))
    while not list(f.path.glob("signalled/partial-*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    assert processes.send(ranks_of(process)[1], signal.SIGTERM), "rank 1 has ended before the signal"
    said = process.communicate(timeout=200)[1]
    assert process.returncode == 130 and said.count("wkvq calibrate: stopped in block") == 1, said
    resumed = f.call(f.args(2, "signalled", **more)).stderr
    assert "block 1/4, epoch 1/8" not in resumed, resumed
    assert f.blocks("signalled") == f.blocks("long") and f.blocks("long") != want


def stop_refinement(f, n, args):
    """Sends a signal to the last of n ranks once a step is saved. Returns the step at which all stopped."""
    def saved():
        return json.loads((f.path / "halted/manifest.json").read_text()).get("partial")
    before = saved()
    process = f.start(f.ranks(n, args))
    while saved() == before:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    assert processes.send(ranks_of(process)[n - 1], signal.SIGTERM), "the rank has ended before the signal"
    said = process.communicate(timeout=200)[1]
    assert process.returncode == 130 and said.count("wkvq refine: stopped at step") == 1, said
    return int(said.split("stopped at step ")[1].split()[0])


def test_a_signal_stops_a_refinement(f):
    shutil.copytree(f.calibrated(), f.path / "halted")
    args = f.refine_args("halted", "--set", "refine.epochs=200")
    first = stop_refinement(f, 3, args)
    assert 0 < first < stop_refinement(f, 2, args), first


def test_ranks_with_another_state(f):
    """A rank that sees an older state would begin at another step. It waits for the right one."""
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
    began = time.monotonic()
    done = f.call(["env", "WKVQ_STATE_WAIT=2", "mpirun", "--oversubscribe", "-n", "1", *first, ":", "-n", "1", *second], want=2)
    assert "rank 1: the state older is not the one that rank 0 has" in done.stderr, done.stderr
    assert time.monotonic() - began >= 2


def test_ranks_with_another_text(f):
    first, second = (f.wkvq_args("mixed", text=text) for text in ("calibration.txt", "heldout.txt"))
    done = subprocess.run(["mpirun", "--oversubscribe", "-n", "1", *first, ":", "-n", "1", *second], cwd=f.path, env=f.env,
                          capture_output=True, text=True, timeout=200)
    assert done.returncode == 2 and "rank 1 has another model, text or configuration than rank 0" in done.stderr, done.stderr


def test_refusals(f):
    done = f.call(f.args(3, "small", more=["calibration.batch=2"]), want=2)
    assert "calibration.batch is 2, but there are 3 ranks" in done.stderr, done.stderr
    assert not (f.path / "small").exists()
    done = f.call(f.ranks(3, f.refine_args(f.calibrated(), "--set", "refine.batch=2")), want=2)
    assert "refine.batch is 2, but there are 3 ranks" in done.stderr, done.stderr
    done = f.call(f.args(3, "small", more=["refine.samples=4", "refine.batch=2"]), want=2)
    assert "refine.batch is 2, but there are 3 ranks" in done.stderr and not (f.path / "small").exists(), done.stderr


def test_a_place_that_is_taken(f):
    """Rank 0 alone looks at the places that a run writes to, and ends all."""
    (f.path / "taken").mkdir()
    (f.path / "taken" / "notes.txt").write_text("mine")
    for args in (f.wkvq_args("taken"), f.wkvq_args("taken", command="quantize"), f.refine_args(f.artifact(), "-o", "taken")):
        done = f.call(["timeout", "60", *f.ranks(3, args)], want=2)
        assert done.stderr.count("notes.txt") == 1, done.stderr
        assert [p.name for p in (f.path / "taken").iterdir()] == ["notes.txt"], args
        assert not list(f.path.glob("taken.*")), args


def test_time_to_wait_is_refused(f):
    for value in ("", "soon", "-1", "1e3", "86401"):
        done = f.call(["env", f"WKVQ_STATE_WAIT={value}", *f.args(2, "small")], want=2)
        assert f'WKVQ_STATE_WAIT is "{value}", not a number of seconds' in done.stderr and not (f.path / "small").exists(), done.stderr


def test_one_rank_refuses(f):
    """A rank alone has a configuration that is refused, as from a file of its own machine. All end."""
    batches = [f.wkvq_args("refused", more=[f"calibration.batch={n}"]) for n in (4, 1)]
    for first, second in (batches, batches[::-1]):
        done = f.call(["timeout", "60", "mpirun", "--oversubscribe", "-n", "1", *first, ":", "-n", "1", *second], want=2)
        assert "calibration.batch is 1, but there are 2 ranks" in done.stderr or "refuses its configuration" in done.stderr, done.stderr
    assert not (f.path / "refused").exists()


def test_plan(f):
    done = f.call([*f.args(2, "planned"), "--plan"])
    assert done.stdout.count("memory ") == 1 and "each rank: 2 of the 4 samples of a step" in done.stderr, done.stderr
    assert "2 ranks are at most 2.00 times" in done.stderr and not (f.path / "planned").exists(), done.stderr
    done = f.call(f.ranks(3, f.refine_args(f.calibrated(), "--plan")))
    assert "refinement, each rank: 2 of the 4 windows of a step" in done.stderr, done.stderr
    assert "3 ranks are at most 2.00 times" in done.stderr and "calibration, each rank" not in done.stderr, done.stderr
    plan = f.refine_args(f.calibrated(), "--plan", "--json")
    alone, shared = (json.loads(f.call(args).stdout)["refinement"] for args in (plan, f.ranks(2, plan)))
    assert shared["activations_bytes"] * 2 == alone["activations_bytes"] > 0, (alone, shared)
    assert shared["device_bytes"] < alone["device_bytes"] and shared["total_flops"] == alone["total_flops"], (alone, shared)


def test_bench(f):
    """Rank 0 alone prints, for all ranks."""
    for more in (["--blocks", "0"], ["--refine", "--layers", "1"]):
        done = f.call(f.ranks(2, [f.wkvq, "bench", "calibrate", "--seqlen", "32", "--steps", "1", "-j1", "--json", *more]))
        each = json.loads(done.stdout)["ranks"]
        assert len(each) == 2 and each[0]["sent_bytes"] == each[1]["sent_bytes"] > 0, each
        assert all(r["compute_s"] > 0 and r["wait_s"] > 0 and r["transfer_s"] > 0 for r in each), each


def refused_without_mpi(f):
    done = subprocess.run(f.wkvq_args("none"), cwd=f.path, env={**f.env, "OMPI_COMM_WORLD_SIZE": "2"}, capture_output=True,
                          text=True, timeout=100)
    assert done.returncode == 2 and "this build has no MPI, but mpirun has started 2 processes" in done.stderr, done.stderr
    assert not (f.path / "none").exists()


if __name__ == "__main__":
    harness.main(globals(), Fixture, arguments=4)
