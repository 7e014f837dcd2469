# SPDX-License-Identifier: MIT
"""Shared code of the crash tests: a small job in its own folder, the bytes that it must end with, and the files that
may remain after a crash."""
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "cli"))
import tiny

SMALL = {"calibration.samples": 4, "calibration.seqlen": 24, "calibration.epochs": 2,
         "weights.group_size": 16, "kv.group_size": 8, "crr.blocks": 1}


def make_model(folder, **changes):
    """A model so small that a run is mostly calls of the system and of the allocator. Its positions limit the tokens that
    verification decodes one by one."""
    tiny.make_model(folder, num_hidden_layers=2, max_position_embeddings=32, **changes)


class Wrong(Exception):
    """An error of a crashed, failed or resumed run."""


def settings(pairs):
    return [word for key, value in pairs.items() for word in ("--set", f"{key}={value}")]


def tree(folder):
    """Bytes of every file below folder, and None for every directory."""
    folder = pathlib.Path(folder)
    return {str(f.relative_to(folder)): None if f.is_dir() else f.read_bytes()
            for f in sorted(folder.rglob("*"))}


def first_difference(have, want):
    if have.keys() != want.keys():
        return f"files differ: {sorted(have.keys() ^ want.keys())}"
    for name, data in want.items():
        if have[name] != data:
            return f"{name} differs"
    return None


def whole_tensors(data):
    """True for a complete safetensors file."""
    if len(data) < 8:
        return False
    n = struct.unpack("<Q", data[:8])[0]
    if 8 + n > len(data):
        return False
    header = json.loads(data[8:8 + n])
    ends = [t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"]
    return 8 + n + max(ends, default=0) == len(data)


class Server:
    """wkvq-fault of one thread. It forks for each run, which saves the loading of its libraries (fault.c)."""

    of = threading.local()

    def __init__(self, wkvq):
        self.folder = tempfile.TemporaryDirectory(prefix="wkvq-fault-")
        self.out, self.err = (pathlib.Path(self.folder.name) / name for name in ("out", "err"))
        self.process = subprocess.Popen([wkvq], env={**os.environ, "FAULT_SERVER": "1"}, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE)

    def run(self, args, cwd, fault, count):
        assert all(args) and len(args) < 100, args
        words = [cwd, self.out, self.err, fault, count, *args[1:], ""]
        self.process.stdin.write(b"".join(os.fsencode(word) + b"\0" for word in words))
        self.process.stdin.flush()
        status = os.waitstatus_to_exitcode(int(self.process.stdout.readline()))
        return subprocess.CompletedProcess(args, status, self.out.read_bytes(), self.err.read_bytes())


def run_fault(args, cwd, fault="", count=""):
    """Runs args[0], a wkvq-fault, in a folder. fault, count: for fault.c."""
    servers = vars(Server.of)
    if args[0] not in servers:
        servers[args[0]] = Server(args[0])
    return servers[args[0]].run([str(a) for a in args], cwd, fault, count)


class Job:
    """A command that makes folders; before: folders that exist when it starts (name -> folder to copy)."""

    def __init__(self, name, args, before=None):
        self.name, self.args, self.before = name, args, before or {}
        self.want, self.old, self.blocks, self.calls = None, {}, {}, {}

    def lay_out(self, folder):
        for name, source in self.before.items():
            shutil.copytree(source, pathlib.Path(folder) / name)

    def run(self, folder, more=(), fault="", count=""):
        return run_fault([*self.args, *more], folder, fault, count)

    def learn(self, folder):
        """Runs once undisturbed, for the expected bytes and the number of calls of each kind."""
        self.lay_out(folder)
        self.old = tree(folder)
        count = pathlib.Path(folder).parent / (self.name + ".calls")
        done = self.run(folder, count=count)
        if done.returncode:
            raise SystemExit(f"{self.name}: exit {done.returncode}\n{done.stderr.decode()}")
        self.want = self.blocks = tree(folder)
        if count.exists():
            self.calls = {k: int(n) for k, n in map(str.split, count.read_text().splitlines())}

    def check_remains(self, folder):
        """Checks that no incomplete file has a final name."""
        have = tree(folder)
        for name, data in have.items():
            top, base = name.split("/")[0], name.split("/")[-1]
            if ".tmp." in name or ".old." in name or data is None or base == "lock":
                continue
            if ".state/" not in name:  # an artifact is there as a whole: the old or the new one
                both = [{n: d for n, d in t.items() if n.split("/")[0] == top}
                        for t in (self.want, self.old)]
                now = {n: d for n, d in have.items() if n.split("/")[0] == top}
                if now not in both:
                    raise Wrong(f"{top} is neither the old nor the new artifact")
            elif base.startswith(("block-", "refined-")) and data != self.blocks.get(name):
                raise Wrong(f"{name} is not the finished block")
            elif base == "manifest.json":
                json.loads(data)
            elif base.startswith("partial-") and not whole_tensors(data):
                raise Wrong(f"{name} is half written")

    def check_end(self, folder):
        """Runs the same command again, undisturbed, and checks that it ends with the expected bytes."""
        if self.old != self.want and tree(folder) == self.want:
            return  # it had done all its work
        done = self.run(folder)
        if done.returncode == 2 and b"--force" in done.stderr and self.args[1] == "convert":
            done = self.run(folder, more=["--force"])  # died after its artifact was in place
        if done.returncode == 2 and b"exists and holds" in done.stderr and self.args[1] in ("export", "fold"):
            done.returncode = 0  # the same, and a finished export is not replaced
        if done.returncode:
            raise Wrong(f"resumed: exit {done.returncode}: {done.stderr.decode()}")
        problem = first_difference(tree(folder), self.want)
        if problem:
            raise Wrong(f"resumed: {problem}")


def in_threads(work, items, workers):
    """Calls work(item) for every item in some threads; returns the results in order."""
    results, queue, lock = [None] * len(items), iter(enumerate(items)), threading.Lock()

    def worker():
        while True:
            with lock:
                i, item = next(queue, (None, None))
            if i is None:
                return
            results[i] = work(item)

    threads = [threading.Thread(target=worker) for _ in range(workers)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return results


def scratch():
    """A folder in memory if there is room, because the tests call fsync thousands of times."""
    shm = pathlib.Path("/dev/shm")
    roomy = shm.is_dir() and shutil.disk_usage(shm).free > 1 << 28
    return tempfile.TemporaryDirectory(prefix="wkvq-crash-", dir=shm if roomy else None)
