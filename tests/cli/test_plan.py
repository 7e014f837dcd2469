#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""--plan writes nothing: test_plan.py WKVQ.

Every command that has the option is run where its output does not exist and where it does. Names and
contents of all files and folders, and times of files, are the same afterwards. A place of an output that exists is
probed with an entry of a writer's temporary name. The kernel's list of what a folder saw must hold nothing else, so
that a file which is created and removed again is found too."""
import ctypes
import json
import os
import pathlib
import re
import struct
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


# What a command may probe: create once under the temporary name of a writer, and remove.
PROBED = {
    "quantize": {"made/artifact", "made/state/manifest.json"},
    "calibrate": {"made/calibrated/manifest.json"},
    "refine": {"made/refined", "made/refined.state/manifest.json"},
    "sweep": set(),
    "export": {"made/dense"},
}
CREATED, REMOVED, MOVED, IS_FOLDER, LOST = 0x100, 0x200, 0xC0, 0x40000000, 0x4000  # of <sys/inotify.h>


class Watch:
    """Lists entries that are created, removed or renamed in a folder and the folders below it."""

    def __init__(self, folder):
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self.call("inotify_init1", os.O_NONBLOCK | os.O_CLOEXEC)
        self.folders = {self.call("inotify_add_watch", self.fd, os.fsencode(path), CREATED | REMOVED | MOVED):
                        path.relative_to(folder) for path in [folder, *folder.rglob("*")] if path.is_dir()}

    def call(self, name, *args):
        result = getattr(self.libc, name)(*args)
        if result < 0:
            raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
        return result

    def end(self):
        """Returns the list of (kind, path) in order, and ends."""
        seen = []
        try:
            while data := os.read(self.fd, 1 << 16):
                at = 0
                while at < len(data):
                    watch, mask, _, size = struct.unpack_from("iIII", data, at)
                    assert not mask & LOST, "events were lost"
                    name = os.fsdecode(data[at + 16:at + 16 + size].rstrip(b"\0"))
                    seen.append((mask & ~IS_FOLDER, str(self.folders[watch] / name)))
                    at += 16 + size
        except BlockingIOError:  # all have been read
            pass
        os.close(self.fd)
        return seen


def snapshot(folder):
    """Every path below: kind, and of files size, time of the last change, and contents."""
    found = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        s = path.lstat()
        of_file = (s.st_size, s.st_mtime_ns, path.read_bytes()) if path.is_file() else None
        found[str(path.relative_to(folder))] = (s.st_mode, of_file)
    return found


def probes(events, allowed):
    """Returns which of the allowed paths were probed: each once, by an entry that is gone. Fails on anything else."""
    created = [re.sub(r"\.tmp\.[^/]+$", "", path) for kind, path in events if kind == CREATED]
    assert len(set(created)) == len(created) and set(created) <= allowed, events
    assert sorted(e[1] for e in events if e[0] == REMOVED) == sorted(e[1] for e in events if e[0] == CREATED), events
    assert all(kind in (CREATED, REMOVED) and ".tmp." in path for kind, path in events), events
    return set(created)


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


SIZES = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}


def shown(text, name):
    """A size that the text of a plan gives, in bytes, and the rest of its line."""
    line = next(x for x in text.splitlines() if x.split()[:1] == [name])
    words = line.split()
    return float(words[1]) * SIZES[words[2]], " ".join(words[3:])


def check_disk(wkvq, folder, args, streams):
    """Text and JSON give the same parts of the disk, and the artifact's are those of the one that is written."""
    plan = json.loads(subprocess.run([*args, "--plan", "--json"], cwd=folder, capture_output=True, text=True, check=True).stdout)
    text = subprocess.run([*args, "--plan"], cwd=folder, capture_output=True, text=True, check=True).stdout
    assert (plan["disk_stream_bytes"] > 0) == streams, plan
    assert plan["disk_bytes"] == plan["state_bytes"] + max(plan["disk_stream_bytes"], plan["artifact_bytes"]), plan
    for name, key in (("disk", "disk_bytes"), ("state", "state_bytes"), ("artifact", "artifact_bytes")):
        assert abs(shown(text, name)[0] / plan[key] - 1) < 0.01, (name, plan[key], text)
    subprocess.run(args, cwd=folder, capture_output=True, check=True)
    out = args[args.index("-o") + 1]
    made = json.loads(subprocess.run([wkvq, "inspect", out, "--json"], cwd=folder, capture_output=True, text=True,
                                     check=True).stdout)
    written = sum(f.stat().st_size for f in (folder / out).iterdir())
    assert 0 <= written - plan["artifact_bytes"] < 4096, (written, plan)  # the manifest names text and state as well
    assert abs(plan["artifact_weight_bits"] - made["weight_bits"]) < 1e-6, (plan, made)
    assert shown(text, "artifact")[1] == f"afterwards, {made['weight_bits']:.3f} bits per weight", text
    print(f"ok the disk of {args[1]}", flush=True)


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
             .split('_wkvq_commands="')[1].split('"')[0].split()}
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

        check_disk(wkvq, folder, [wkvq, "quantize", "model", "--data", "text.txt", "-o", "sized", *SMALL], False)
        check_disk(wkvq, folder, [wkvq, "quantize", "model", "--data", "text.txt", "-o", "streamed", "--memory", "100k", *SMALL],
                   True)
        check_disk(wkvq, folder, [a.replace("made/", "sized-") for a in commands["refine"]], False)
        calibrate = subprocess.run([*commands["calibrate"], "--plan", "--json"], cwd=folder, capture_output=True, text=True)
        assert "artifact_bytes" not in json.loads(calibrate.stdout), calibrate.stdout
        probed = set()

        def check(command, when):
            before, watch = snapshot(folder), Watch(folder)
            time.sleep(0.01)
            done = subprocess.run([*commands[command], "--plan"], cwd=folder, capture_output=True, text=True)
            refused = command == "export" and when == "finished work there"  # it never replaces an export
            assert done.returncode == (2 if refused else 0) and bool(done.stdout) != refused, (command, when, done.stderr)
            after, events = snapshot(folder), watch.end()
            changed = sorted(p for p in before.keys() | after.keys() if before.get(p) != after.get(p))
            assert not changed, f"{command} --plan, {when}, changed {changed}"
            probed.update(probes(events, PROBED[command] if when != "nothing there" else set()))
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
        assert probed == set().union(*PROBED.values()), probed


if __name__ == "__main__":
    os.environ.pop("COLUMNS", None)
    main()
