#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The whole pipeline on several threads: test_threads.py WKVQ DEMO_DIR.

The code that a race detector has to see: calibration in both compute types, with rounding offsets,
GPTQ, a rotated cache and streams on disk; conversion, verification, evaluation, generation. Under a
sanitizer no command may cause a report. In any build, packing and the packed runtime give the same bytes for any number
of threads. Simulation and calibration give the same bytes for the same number (test_pipeline.py)."""
import json
import pathlib
import subprocess
import sys
import tempfile

THREADS = (1, 3, 4)
CALIBRATE = ["calibration.samples=2", "calibration.seqlen=128", "calibration.epochs=1", "crr.blocks=1"]
WAYS = {
    "f32": ["run.compute=f32"],
    "bf16": ["run.compute=bf16", "weights.init=search"],
    "rounding": ["weights.round=learned", "kv.rotate=kv", "run.memory=1M"],
    "gptq": ["weights.method=gptq", "weights.act_order=true"],
}


class Bench:
    def __init__(self, wkvq, demo, folder):
        self.wkvq, self.demo, self.folder = wkvq, pathlib.Path(demo), pathlib.Path(folder)
        (self.folder / "text.txt").write_bytes((self.demo / "heldout.txt").read_bytes()[:6000])

    def run(self, threads, *args):
        """Runs wkvq, which must succeed, and returns its stdout."""
        done = subprocess.run([self.wkvq, *map(str, args), "-j", str(threads)], cwd=self.folder,
                              capture_output=True, timeout=300)
        errors = done.stderr.decode(errors="replace")
        if done.returncode or "Sanitizer" in errors:
            raise AssertionError(f"{' '.join(map(str, args))} -j {threads}\nexit {done.returncode}\n{errors}")
        return done.stdout

    def files(self, name):
        return {f.name: f.read_bytes() for f in (self.folder / name).iterdir()}


def settings(pairs):
    return [w for pair in pairs for w in ("--set", pair)]


def test_calibrations(b):
    """Every kind of calibration on three or four threads, to its end."""
    for i, (name, ways) in enumerate(WAYS.items()):
        b.run(3 + i % 2, "calibrate", b.demo, "--data", b.demo / "calibration.txt", "-o", name + ".state",
              *settings(CALIBRATE + ways))
        b.run(4 - i % 2, "convert", b.demo, "--state", name + ".state", "-o", name)
        manifest = json.loads((b.folder / name / "manifest.json").read_text())
        assert manifest["tensors"], name


def test_packing_gives_the_same_bytes(b):
    """Rounding to nearest, in several shards."""
    for n in THREADS:
        b.run(n, "convert", b.demo, "-o", f"packed-{n}", "--shard", "300K")
    first = b.files("packed-1")
    assert sum(name.endswith(".safetensors") for name in first) > 1, sorted(first)
    for n in THREADS[1:]:
        assert b.files(f"packed-{n}") == first, f"{n} threads: other bytes"


def test_reading_gives_the_same_answers(b):
    """Evaluates the artifacts above. The packed runtime does not depend on the number of threads. Products of the
    simulation have tiles by thread, so it is repeatable for one number of them."""
    packed = [["eval", "f32", "--data", "text.txt", "--ctx", "64", "--windows", "1", "--decode", "--json"],
              ["generate", "bf16", "-p", "The ", "-n", "24"]]
    for args in packed:
        told = [without_times(b.run(n, *args)) for n in THREADS]
        assert told[0] and told.count(told[0]) == len(told), (args, told)
    simulated = ["eval", "rounding", "--data", "text.txt", "--ctx", "128", "--windows", "2", "--json"]
    first, second = (without_times(b.run(3, *simulated)) for _ in range(2))
    assert first["ppl"] > 1 and first == second, (first, second)
    for n in THREADS:
        told = b.run(n, "verify", "f32", "--against", b.demo, "--data", "text.txt", "--ctx", "128", "--json")
        assert json.loads(told)["passed"], told


def without_times(text):
    """Returns JSON without measured values; other text unchanged."""
    try:
        return {k: v for k, v in json.loads(text).items() if "second" not in k}
    except ValueError:
        return text


def main():
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        b = Bench(str(pathlib.Path(sys.argv[1]).resolve()), pathlib.Path(sys.argv[2]).resolve(), folder)
        for test in (test_calibrations, test_packing_gives_the_same_bytes, test_reading_gives_the_same_answers):
            try:
                test(b)
                print("ok  ", test.__name__, flush=True)
            except Exception as e:
                failed += 1
                print("FAIL", test.__name__, "\n", e, flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
