#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The whole pipeline on several threads: test_threads.py WKVQ DEMO_DIR.

The code that a race detector has to see: calibration in both compute types, with rounding offsets,
GPTQ, a rotated cache and streams on disk; conversion, verification, evaluation, generation. Under a
sanitizer no command may cause a report. In any build, packing and the packed runtime give the same bytes for any number
of threads. Simulation and calibration give the same bytes for the same number (test_pipeline.py)."""
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import harness

THREADS = (1, 3, 4)
CALIBRATE = ["calibration.samples=2", "calibration.seqlen=128", "calibration.epochs=1", "crr.blocks=1"]
WAYS = {
    "f32": ["run.compute=f32"],
    "bf16": ["run.compute=bf16", "weights.init=search"],
    "rounding": ["weights.round=learned", "kv.rotate=kv", "run.memory=1M"],
    "gptq": ["weights.method=gptq", "weights.act_order=true"],
}


class Bench(harness.Bench):
    decode = False

    def __init__(self, wkvq, demo, folder):
        super().__init__(wkvq, folder)
        self.demo = pathlib.Path(demo).resolve()
        (self.path / "text.txt").write_bytes((self.demo / "heldout.txt").read_bytes()[:6000])

    def on(self, threads, *args):
        """Runs wkvq on this many threads, without a report of a sanitizer, and returns its stdout."""
        done = self.run(*args, "-j", threads)
        assert b"Sanitizer" not in done.stderr, done.stderr.decode(errors="replace")
        return done.stdout

    def artifact(self, name):
        """Makes the artifact of one of WAYS, unless it is there."""
        if not (self.path / name).exists():
            i = list(WAYS).index(name)
            self.on(3 + i % 2, "calibrate", self.demo, "--data", self.demo / "calibration.txt", "-o", name + ".state",
                    *harness.words(CALIBRATE + WAYS[name]))
            self.on(4 - i % 2, "convert", self.demo, "--state", name + ".state", "-o", name)
        return self.path / name

    def files(self, name):
        return {f.name: f.read_bytes() for f in (self.path / name).iterdir()}


def test_calibrations(b):
    """Every kind of calibration on three or four threads, to its end."""
    for name in WAYS:
        manifest = json.loads((b.artifact(name) / "manifest.json").read_text())
        assert manifest["tensors"], name


def test_packing_gives_the_same_bytes(b):
    """Rounding to nearest, in several shards."""
    for n in THREADS:
        b.on(n, "convert", b.demo, "-o", f"packed-{n}", "--shard", "300K")
    first = b.files("packed-1")
    assert sum(name.endswith(".safetensors") for name in first) > 1, sorted(first)
    for n in THREADS[1:]:
        assert b.files(f"packed-{n}") == first, f"{n} threads: other bytes"


def test_reading_gives_the_same_answers(b):
    """Evaluates artifacts of WAYS. The packed runtime does not depend on the number of threads. Products of the
    simulation have tiles by thread, so it is repeatable for one number of them."""
    for name in ("f32", "bf16", "rounding"):
        b.artifact(name)
    packed = [["eval", "f32", "--data", "text.txt", "--ctx", "64", "--windows", "1", "--decode", "--json"],
              ["generate", "bf16", "-p", "The ", "-n", "24"]]
    for args in packed:
        told = [without_times(b.on(n, *args)) for n in THREADS]
        assert told[0] and told.count(told[0]) == len(told), (args, told)
    simulated = ["eval", "rounding", "--data", "text.txt", "--ctx", "128", "--windows", "2", "--json"]
    first, second = (without_times(b.on(3, *simulated)) for _ in range(2))
    assert first["ppl"] > 1 and first == second, (first, second)
    for n in THREADS:
        told = b.on(n, "verify", "f32", "--against", b.demo, "--data", "text.txt", "--ctx", "128", "--json")
        assert json.loads(told)["passed"], told


def without_times(text):
    """Returns JSON without measured values; other text unchanged."""
    try:
        return {k: v for k, v in json.loads(text).items() if "second" not in k}
    except ValueError:
        return text


if __name__ == "__main__":
    harness.main(globals(), Bench, arguments=2)
