#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""--plan writes nothing: test_plan.py WKVQ.

Every command that has the option is run where its output does not exist and where it does; names,
contents and times of all files and folders are the same afterwards."""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import tiny

SWEEP = """
base: {calibration: {samples: 4, seqlen: 32, epochs: 1}, weights.group_size: 12, kv.group_size: 8, crr.blocks: 1}
grid: {weights.bits: [3, 4]}
eval: {data: text.txt, windows: 2, ctx: 32}
"""
SMALL = [word for pair in ("calibration.samples=4", "calibration.seqlen=32", "calibration.epochs=1", "crr.blocks=1")
         for word in ("--set", pair)] + ["-j1"]


def snapshot(folder):
    """Every path below: kind, size, time of the last change, contents. A folder's time shows files
    that were created and removed."""
    found = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        s = path.lstat()
        content = path.read_bytes() if path.is_file() else None
        # The place of an output is probed with a file that is removed again, which changes a folder's time alone.
        time_of = s.st_mtime_ns if content is not None else 0
        found[str(path.relative_to(folder))] = (s.st_mode, s.st_size if content is not None else 0, time_of, content)
    return found


def check_threads(wkvq):
    """Each thread of the cpu device has working memory of its own, which the plan counts; a GPU's does not depend on
    the host's threads."""
    def activations(device, threads):
        command = [wkvq, "calibrate", "--plan", "--shape", "smollm2-135m", "--json", "-j", str(threads), "--device", device,
                   "--set", "run.device_memory=24G", "--set", "refine.samples=4"]
        plan = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        return plan["activations_bytes"], plan["refinement"]["device_bytes"]

    one, many = activations("cpu", 1), activations("cpu", 64)
    assert all(more - least > 63 << 20 for least, more in zip(one, many)), (one, many)
    assert activations("cuda", 1) == activations("cuda", 64)


def main():
    wkvq = str(pathlib.Path(sys.argv[1]).resolve())
    commands = {
        "quantize": [wkvq, "quantize", "model", "--data", "text.txt", "-o", "made/artifact", "--state", "made/state", *SMALL],
        "calibrate": [wkvq, "calibrate", "model", "--data", "text.txt", "-o", "made/calibrated", *SMALL],
        "refine": [wkvq, "refine", "model", "rounded", "--data", "text.txt", "-o", "made/refined", *SMALL[-1:],
                   "--set", "refine.samples=4", "--set", "refine.seqlen=32", "--set", "refine.guard=2"],
        "sweep": [wkvq, "sweep", "s.yaml", "-m", "model", "--data", "text.txt", "-o", "made/sweep", "-j1"],
        "export": [wkvq, "export", "source", "--format", "dense", "-o", "made/dense"],
    }
    check_threads(wkvq)
    texts = {name: subprocess.run([wkvq, name, "--help"], capture_output=True, text=True, check=True).stdout
             for name in subprocess.run([wkvq, "--completion"], capture_output=True, text=True, check=True).stdout
             .split('compgen -W "')[1].split('"')[0].split() if not name.startswith("-") and name != "help"}
    planned = {name for name, text in texts.items() if "--plan" in text.split()}
    assert planned == set(commands), f"commands with --plan: {sorted(planned)}, tested: {sorted(commands)}"
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        tiny.make_model(folder / "model", num_hidden_layers=2)
        tiny.make_text(folder / "text.txt", 500)
        (folder / "s.yaml").write_text(SWEEP)
        subprocess.run([wkvq, "convert", "model", "-o", "source", "--set", "kv.method=token", "-j1"], cwd=folder, check=True,
                       capture_output=True)
        subprocess.run([wkvq, "convert", "model", "-o", "rounded", "--set", "weights.group_size=12"], cwd=folder,
                       check=True, capture_output=True)

        def check(command, when):
            before = snapshot(folder)
            time.sleep(0.01)
            done = subprocess.run([*commands[command], "--plan"], cwd=folder, capture_output=True, text=True)
            refused = command == "export" and when == "finished work there"  # it never replaces an export
            assert done.returncode == (2 if refused else 0) and bool(done.stdout) != refused, (command, when, done.stderr)
            after = snapshot(folder)
            changed = sorted(p for p in before.keys() | after.keys() if before.get(p) != after.get(p))
            assert not changed, f"{command} --plan, {when}, changed {changed}"
            print(f"ok {command} --plan, {when}", flush=True)
            return done.stdout

        for command in commands:
            check(command, "nothing there")
        (folder / "made").mkdir()
        for command in commands:
            check(command, "an empty folder there")
        for command, args in commands.items():
            more = ["--keep-state"] if command in ("quantize", "refine") else []
            subprocess.run([*args, *more], cwd=folder, check=True, capture_output=True)
        for command in commands:
            check(command, "finished work there")
        # A result that a killed sweep left: the plan counts it, and leaves it to the next run.
        out = folder / "made/sweep"
        line = (out / "results.jsonl").read_text().splitlines()[0]
        hash_of = line.split('"hash":"')[1][:16]
        (out / "cells" / f"{hash_of}.json").write_text(line)
        (out / "results.jsonl").unlink()
        plan = check("sweep", "an unlisted result there").splitlines()
        assert [p.split()[0] for p in plan] == ["done", "to"], plan


if __name__ == "__main__":
    os.environ.pop("COLUMNS", None)
    main()
