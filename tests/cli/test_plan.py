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
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import harness
import tiny

SWEEP = """
base: {calibration: {samples: 4, seqlen: 32, epochs: 1}, weights.group_size: 12, kv.group_size: 8, crr.blocks: 1}
grid: {weights.bits: [3, 4]}
eval: {data: text.txt, windows: 2, ctx: 32}
"""
SMALL = [*harness.words(["calibration.samples=4", "calibration.seqlen=32", "calibration.epochs=1", "crr.blocks=1"]), "-j1"]
REFINE = ["-j1", *harness.words(["refine.samples=4", "refine.seqlen=32", "refine.guard=2"])]
# The commands with --plan.
COMMANDS = {
    "quantize": ["quantize", "model", "--data", "text.txt", "-o", "made/artifact", "--state", "made/state", *SMALL],
    "calibrate": ["calibrate", "model", "--data", "text.txt", "-o", "made/calibrated", *SMALL],
    "refine": ["refine", "model", "rounded", "--data", "text.txt", "-o", "made/refined", *REFINE],
    "sweep": ["sweep", "s.yaml", "-m", "model", "--data", "text.txt", "-o", "made/sweep", "-j1"],
    "export": ["export", "source", "--format", "dense", "-o", "made/dense"],
}

# What a command may probe: create once under the temporary name of a writer, and remove.
PROBED = {
    "quantize": {"made/artifact", "made/state/manifest.json"},
    "calibrate": {"made/calibrated/manifest.json"},
    "refine": {"made/refined", "made/refined.state/manifest.json"},
    "sweep": set(),
    "export": {"made/dense"},
}
CREATED, REMOVED, MOVED, IS_FOLDER, LOST = 0x100, 0x200, 0xC0, 0x40000000, 0x4000  # of <sys/inotify.h>


class Fixture(harness.Bench):
    def __init__(self, wkvq, folder):
        super().__init__(wkvq, folder)
        tiny.make_model(self.path / "model", num_hidden_layers=2)
        tiny.make_text(self.path / "text.txt", 500)
        (self.path / "s.yaml").write_text(SWEEP)
        self.run("convert", "model", "-o", "source", "--set", "kv.method=token", "-j1")
        self.run("convert", "model", "-o", "rounded", "--set", "weights.group_size=12")

    def plan(self, *args):
        """Returns the plan of a command."""
        return json.loads(self.run(*args, "--plan", "--json").stdout)


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


def test_threads(f):
    """Each thread of the cpu device has working memory of its own, which the plan counts; a GPU's does not depend on
    the host's threads."""
    def activations(device, threads):
        plan = f.plan("calibrate", "--shape", "smollm2-135m", "-j", threads, "--device", device,
                      *harness.words(["run.device_memory=24G", "refine.samples=4"]))
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


def check_disk(f, args, streams):
    """Text and JSON give the same parts of the disk, and the artifact's are those of the one that is written."""
    plan, text = f.plan(*args), f.run(*args, "--plan").stdout
    assert (plan["disk_stream_bytes"] > 0) == streams, plan
    assert plan["disk_bytes"] == plan["state_bytes"] + max(plan["disk_stream_bytes"], plan["artifact_bytes"]), plan
    for name, key in (("disk", "disk_bytes"), ("state", "state_bytes"), ("artifact", "artifact_bytes")):
        assert abs(shown(text, name)[0] / plan[key] - 1) < 0.01, (name, plan[key], text)
    f.run(*args)
    out = args[args.index("-o") + 1]
    made = json.loads(f.run("inspect", out, "--json").stdout)
    written = sum(file.stat().st_size for file in (f.path / out).iterdir())
    assert 0 <= written - plan["artifact_bytes"] < 4096, (written, plan)  # the manifest names text and state as well
    assert abs(plan["artifact_weight_bits"] - made["weight_bits"]) < 1e-6, (plan, made)
    assert shown(text, "artifact")[1] == f"afterwards, {made['weight_bits']:.3f} bits per weight", text


def test_disk(f):
    check_disk(f, ["quantize", "model", "--data", "text.txt", "-o", "sized", *SMALL], False)
    check_disk(f, ["quantize", "model", "--data", "text.txt", "-o", "streamed", "--memory", "100k", *SMALL], True)
    check_disk(f, [a.replace("made/", "sized-") for a in COMMANDS["refine"]], False)
    assert "artifact_bytes" not in f.plan(*COMMANDS["calibrate"])


def test_place_is_not_needed(f):
    """Without -o a plan is the same, and writes nothing."""
    for command in ("quantize", "calibrate", "refine"):
        args = COMMANDS[command]
        at = args.index("-o")
        nowhere = args[:at] + args[at + 2:]
        before = snapshot(f.path)
        free, placed = ({name: value for name, value in f.plan(*how).items()
                         if not name.endswith("seconds") and name != "memory_available_bytes"} for how in (nowhere, args))
        assert free == placed and free["state_bytes"] > 0, (command, free, placed)
        assert snapshot(f.path) == before, command
        said = f.run(*nowhere, want=2).stderr
        assert "give -o" in said, (command, said)


def parts(text, name):
    """The memory that a section of a plan names, in bytes, and the sum of its parts there."""
    lines = re.search(rf"^{name} .*\n(?:  .*\n)*", text, re.M)[0].splitlines()
    lines = lines[0 if name == "memory" else 1:]
    assert lines[0].endswith("of which"), lines
    sizes = [float(x.split()[-2]) * SIZES[x.split()[-1]] for x in (re.match(r" *[a-z ]+ [\d.]+ [kMG]?B", x)[0] for x in lines
                                                                if "not in memory" not in x)]
    return sizes[0], sum(sizes[1:])


def test_memory_is_the_sum_of_its_parts(f):
    for config in (["refine.samples=64"], ["refine.samples=64", "kv.rotate=kv", "weights.round=learned", "head.bits=8"],
                   ["refine.samples=64", "refine.seqlen=64"], ["refine.samples=64", "run.memory=3G"]):
        text = f.run("calibrate", "--plan", "--shape", "tinyllama-1.1b", "-j2", *harness.words(config)).stdout
        for name in ("memory", "refinement"):
            whole, sum_of_parts = parts(text, name)
            assert abs(whole / sum_of_parts - 1) < 0.01, (config, name, whole, sum_of_parts, text)


def test_every_command_with_a_plan_is_tested(f):
    names = f.run("--completion").stdout.split('_wkvq_commands="')[1].split('"')[0].split()
    planned = {name for name in names if "--plan" in f.run(name, "--help").stdout.split()}
    assert planned == set(COMMANDS), f"commands with --plan: {sorted(planned)}, tested: {sorted(COMMANDS)}"


def check_nothing_changes(f, command, when):
    """Returns the plan's text, and the paths that were probed."""
    before, watch = snapshot(f.path), Watch(f.path)
    time.sleep(0.01)
    refused = command == "export" and when == "finished work there"  # it never replaces an export
    done = f.run(*COMMANDS[command], "--plan", want=2 if refused else 0)
    assert bool(done.stdout) != refused, (command, when, done.stderr)
    after, events = snapshot(f.path), watch.end()
    changed = sorted(p for p in before.keys() | after.keys() if before.get(p) != after.get(p))
    assert not changed, f"{command} --plan, {when}, changed {changed}"
    return done.stdout, probes(events, PROBED[command] if when != "nothing there" else set())


def test_nothing_changes(f):
    probed = set()
    for command in COMMANDS:
        check_nothing_changes(f, command, "nothing there")
    (f.path / "made").mkdir()
    for command in COMMANDS:
        probed |= check_nothing_changes(f, command, "an empty folder there")[1]
    for command, args in COMMANDS.items():
        f.run(*args, *(["--keep-state"] if command in ("quantize", "refine") else []))
    for command in COMMANDS:
        probed |= check_nothing_changes(f, command, "finished work there")[1]
    # A result that a killed sweep left: the plan counts it, and leaves it to the next run.
    out = f.path / "made/sweep"
    line = (out / "results.jsonl").read_text().splitlines()[0]
    hash_of = line.split('"hash":"')[1][:16]
    (out / "cells" / f"{hash_of}.json").write_text(line)
    (out / "results.jsonl").unlink()
    plan, more = check_nothing_changes(f, "sweep", "an unlisted result there")
    plan = plan.splitlines()
    assert [p.split()[0] for p in plan] == ["done", "to"], plan
    assert probed | more == set().union(*PROBED.values()), probed


if __name__ == "__main__":
    harness.main(globals(), Fixture)
