#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""An artifact that cannot be copied into memory is mapped: test_load.py WKVQ_FAULT DEMO."""
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "cli"))
import harness


class Fixture(harness.Bench):
    decode = False
    timeout = 120

    def __init__(self, wkvq, demo, folder):
        super().__init__(wkvq, folder)
        self.run("convert", pathlib.Path(demo).resolve(), "-o", "demo")

    def generate(self, want=0, **env):
        return self.run("generate", "demo", "-p", "The ", "-n", "10", want=want, env={**os.environ, **env})


def test_refused_maps(f):
    want = f.generate(FAULT_COUNT="count")
    counts = dict(line.split() for line in (f.path / "count").read_text().splitlines())
    calls, mapped = int(counts["mmap"]), 0
    assert calls > 0, counts
    for n in range(1, calls + 1):
        got = f.generate(want=None, FAULT=f"mmap:{n}:ENOMEM")
        if got.returncode == 0:
            assert got.stdout == want.stdout, got.stdout
            mapped += 1
        else:
            assert got.returncode == 1 and got.stderr.startswith(b"wkvq "), (got.returncode, got.stderr)
    print(f"{calls} calls of mmap refused in turn: {mapped} times a map did instead")
    assert mapped == 1, mapped  # of the artifact's one tensor file


if __name__ == "__main__":
    harness.main(globals(), Fixture, arguments=2)
