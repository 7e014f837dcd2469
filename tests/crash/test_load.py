#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""An artifact that cannot be copied into memory is mapped: test_load.py WKVQ_FAULT DEMO."""
import os
import pathlib
import subprocess
import sys
import tempfile


def main():
    wkvq, demo = (str(pathlib.Path(p).resolve()) for p in sys.argv[1:3])
    with tempfile.TemporaryDirectory() as folder:

        def run(*args, **env):
            return subprocess.run([wkvq, *args], cwd=folder, capture_output=True, timeout=120, env={**os.environ, **env})

        def generate(**env):
            return run("generate", "demo", "-p", "The ", "-n", "10", **env)

        run("convert", demo, "-o", "demo").check_returncode()
        want = generate(FAULT_COUNT="count")
        want.check_returncode()
        counts = dict(line.split() for line in (pathlib.Path(folder) / "count").read_text().splitlines())
        calls, mapped = int(counts["mmap"]), 0
        assert calls > 0, counts
        for n in range(1, calls + 1):
            got = generate(FAULT=f"mmap:{n}:ENOMEM")
            if got.returncode == 0:
                assert got.stdout == want.stdout, got.stdout
                mapped += 1
            else:
                assert got.returncode == 1 and got.stderr.startswith(b"wkvq "), (got.returncode, got.stderr)
        print(f"{calls} calls of mmap refused in turn: {mapped} times a map did instead")
        assert mapped == 1, mapped  # of the artifact's one tensor file


if __name__ == "__main__":
    main()
