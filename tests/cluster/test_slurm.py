#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A sweep of the demo model under a real Slurm of two nodes on this machine: test_slurm.py WKVQ DEMO.

slurmctld, two slurmd and munged run from a temporary folder, without systemd, and end with the test. One task is
preempted, and one node is lost. The page equals the one that is made without Slurm. Exits with 77 where Slurm's or
munge's programs are missing, or for another user than root, which slurmd needs."""
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "cli"))
import harness
import processes

os.environ["PATH"] += ":/usr/sbin:/sbin"
PROGRAMS = ["munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "sinfo", "scancel"]
WAIT = 400  # seconds for any one event; the machine may be busy
SWEEP = """
base:
  calibration: {samples: 8, seqlen: 128, epochs: 12}
  run: {threads: 1, compute: f32}
grid:
  weights.bits: [3, 4]
  crr.blocks: [0, 1]
eval: {windows: 2, ctx: 128}
"""
CONF = """
ClusterName=wkvq
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/builtin
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MpiDefault=none
ReturnToService=2
SlurmdTimeout=6
KillWait=120
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 State=UNKNOWN
PartitionName=low Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=high Nodes=n1 MaxTime=INFINITE State=UP PriorityTier=10
"""


def environment(pid):
    """Returns a process's environment; empty if it has ended."""
    try:
        raw = pathlib.Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    return dict(e.split("=", 1) for e in raw.decode(errors="replace").split("\0") if "=" in e)


def parent(pid):
    """Returns the parent of a process; 0 if the process has ended."""
    try:
        return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0


def wait_for(what, condition):
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, f"no {what} in {WAIT} seconds"
        time.sleep(0.1)


class Slurm:
    """A cluster of two nodes in the folder of a bench, whose commands find it."""

    def __init__(self, bench):
        self.bench, self.folder, self.daemons = bench, bench.path, {}
        self.conf = str(self.folder / "slurm.conf")
        bench.env = {**os.environ, "SLURM_CONF": self.conf}

    def start(self):
        sockets = [socket.socket() for _ in range(3)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        ports = [s.getsockname()[1] for s in sockets]
        for s in sockets:
            s.close()
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        pathlib.Path(self.conf).write_text(CONF.format(host=socket.gethostname().split(".")[0], ports=ports, folder=self.folder))
        self.begin("munged", "munged", "--force", "--foreground", *(f"--{n}-file={self.folder}/munge.{n}" for n in ("key", "pid", "log", "seed")),
                   f"--socket={self.folder}/munge.socket")
        wait_for("socket of munged", (self.folder / "munge.socket").exists)
        self.begin("slurmctld", "slurmctld", "-D", "-c")
        for node in ("n1", "n2"):
            self.begin(node, "slurmd", "-D", "-N", node)
        wait_for("idle nodes", lambda: self.call("sinfo", "-h", "-p", "low", "-t", "idle", "-o", "%D", fails=True).strip() == "2")

    def begin(self, name, *args):
        log = open(self.folder / f"{name}.out", "wb")
        self.daemons[name] = subprocess.Popen(args, stdout=log, stderr=log, env=self.bench.env)

    def call(self, *args, fails=False):
        return self.bench.call(args, want=None if fails else 0).stdout

    def processes(self):
        """Everything that was started under this configuration and still runs, except its daemons."""
        own = {d.pid for d in self.daemons.values()} | {os.getpid()}
        pids = [int(p.name) for p in pathlib.Path("/proc").iterdir() if p.name.isdigit()]
        return [p for p in pids if p not in own and environment(p).get("SLURM_CONF") == self.conf]

    def tasks(self, node=None):
        """Array index -> process of each running task of the sweep."""
        found = {}
        for pid in self.processes():
            env = environment(pid)
            if "SLURM_ARRAY_TASK_ID" in env and node in (None, env.get("SLURMD_NODENAME")):
                found[int(env["SLURM_ARRAY_TASK_ID"])] = pid
        return found

    def lose(self, node):
        """All processes of a node end at once, as when its power fails."""
        self.daemons[node].kill()
        for pid in self.tasks(node).values():
            for victim in (parent(pid), pid):
                if victim > 1:
                    processes.send(victim, signal.SIGKILL)

    def stop(self):
        if "slurmctld" in self.daemons:
            self.call("scancel", "-u", "root", "--signal=KILL", "--full", fails=True)
        for daemon in self.daemons.values():
            daemon.terminate()
        for daemon in self.daemons.values():
            try:
                daemon.wait(30)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for pid in self.processes():
            processes.send(pid, signal.SIGKILL)
        wait_for("end of Slurm's processes", lambda: not self.processes())

    def logs(self):
        return "\n".join(f"== {p.name}\n" + p.read_text(errors="replace")[-3000:] for p in sorted(self.folder.glob("*.log")))


class Fixture(harness.Bench):
    timeout = 800

    def __init__(self, wkvq, demo, folder):
        missing = [p for p in PROGRAMS if not shutil.which(p)]
        if missing or os.geteuid() != 0:
            raise harness.Skip(f"no {', '.join(missing)}" if missing else "slurmd needs root")
        super().__init__(wkvq, folder)
        self.demo, self.slurm = pathlib.Path(demo).resolve(), Slurm(self)
        (self.path / "four.yaml").write_text(SWEEP)

    def sweep(self, out, *more):
        return self.run("sweep", "four.yaml", "-m", self.demo, "-d", self.demo / "calibration.txt", "-e",
                        self.demo / "heldout.txt", "-o", out, *more).stdout

    def plan(self, out):
        return [line.split()[0] for line in self.sweep(out, "--plan").splitlines()]

    def log(self, out, task):
        (path,) = (self.path / out / "logs").glob(f"*_{task}.log")
        return path.read_text()

    def page(self, out):
        """Returns the page of the results, whose times are made equal."""
        rows = [json.loads(line) for line in (self.path / out / "results.jsonl").read_text().splitlines()]
        same = self.path / f"same-{out}"
        same.mkdir(exist_ok=True)
        text = "".join(json.dumps({**r, "seconds": 1.0, "calibrate_seconds": 1.0, "run": {}}) + "\n" for r in rows)
        (same / "results.jsonl").write_text(text)
        self.run("report", same, "-t", "four cells", "-o", "page.html")
        return len(rows), (self.path / "page.html").read_text()


def preempt(slurm, f, out):
    """A job of higher priority takes a task's processor on n1. Returns the task."""
    wait_for("state to be saved on n1", lambda: any(
        "epoch 2/" in f.log(out, task) for task in slurm.tasks("n1")))
    busy = slurm.tasks("n1")
    slurm.call("sbatch", "-p", "high", "-c", "2", "-o", "/dev/null", "--wrap", "sleep 2")

    def stopped():
        """Tasks that were preempted in a block. One that had not begun a block has nothing to resume."""
        logs = {task: f.log(out, task) for task in busy}
        return [task for task, log in logs.items() if "DUE TO PREEMPTION" in log and "stopped in block" in log]

    wait_for("preempted task", stopped)
    return stopped()[0]


def epochs(log):
    """Returns the (block, epoch) of each finished epoch in a log."""
    return [(int(b), int(e)) for b, e in re.findall(r"block (\d+)/\d+, epoch (\d+)/", log)]


def check(slurm, f):
    f.sweep("cluster", "--slurm=--chdir=" + str(f.path), "--parallel", "3")
    # The nodes have room for all four tasks, so that only the limit holds the fourth back.
    wait_for("three tasks", lambda: len(slurm.tasks()) >= 3)
    assert "ArrayTaskThrottle=3" in slurm.call("scontrol", "show", "job"), "the limit of --parallel is missing"
    held = slurm.call("squeue", "-h", "-r", "-t", "PENDING", "-o", "%r").split()
    assert len(slurm.tasks()) == 3 and held == ["JobArrayTaskLimit"], (slurm.tasks(), held)
    preempted = preempt(slurm, f, "cluster")
    print(f"task {preempted} was preempted", flush=True)

    def begun():
        """Tasks on n2 that have said which cell they compute."""
        return [task for task in slurm.tasks("n2") if f"cell {task} of 4" in f.log("cluster", task)]

    wait_for("tasks on n2", begun)
    lost = begun()
    slurm.lose("n2")
    print(f"n2 was lost with tasks {lost}", flush=True)
    while slurm.call("squeue", "-h").strip():
        words = f.plan("cluster")
        assert len(words) == 4 and "failed" not in words, words
        if "done" in words:
            f.run("report", "cluster", "-o", "early.html")
        time.sleep(2)
    assert f.plan("cluster") == ["done"] * 4, slurm.logs()
    before, after = (epochs(part) for part in f.log("cluster", preempted).split("stopped in block", 1))
    assert before and after and after[0] > before[-1], (before, after)
    for task in lost:
        assert f.log("cluster", task).count(f"cell {task} of 4") >= 2, f.log("cluster", task)
    assert not list((f.path / "cluster" / "cells").iterdir()), "files of cells are left"


def test_one_page(f):
    """The page of the cluster equals the one that is made without Slurm."""
    try:
        f.slurm.start()
        check(f.slurm, f)
    except BaseException:
        print(f.slurm.logs())
        raise
    finally:
        f.slurm.stop()
    f.sweep("alone", "-q")
    assert f.page("cluster") == f.page("alone"), "the pages differ"


if __name__ == "__main__":
    harness.main(globals(), Fixture, arguments=2)
