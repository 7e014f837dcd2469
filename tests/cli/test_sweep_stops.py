#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Interruptions of sweeps, and of their cells: test_sweep_stops.py WKVQ [TEST...]."""
import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import harness
import processes
import tiny
from test_sweep import EVIL, SWEEP, Fixture


def test_interrupted(f):
    f.reference()
    process = subprocess.Popen(f.command("stopped"), cwd=f.path, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    while not list((f.path / "stopped").glob("cells/*.state")):
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) in (130, 0)
    f.call(f.command("stopped"))
    assert len(f.rows("stopped")) == 3


def test_a_terminal_stops_parent_and_cell(f):
    """Ctrl-C reaches both, and one of them says so."""
    process = subprocess.Popen(f.command("typed", "--set", "calibration.epochs=250"), cwd=f.path, text=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    while not list((f.path / "typed").glob("cells/*.state/*")):
        assert process.poll() is None
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 130 and said.count("stopping after the current step") == 1, said


LONG = ["--data", "long.txt", "--set", "calibration.samples=4", "--set", "calibration.seqlen=2048",
        "--set", "calibration.batch=2", "--set", "calibration.epochs=50"]


def begin_long_steps(f, out):
    """Starts a sweep whose steps take some hundred milliseconds, in a process group of its own, and halts it after the
    first step: the process, the manifest of its cell's state, and what that says of the block in training."""
    if not (f.path / "long-model").exists():
        tiny.make_model(f.path / "long-model", num_hidden_layers=3, max_position_embeddings=2048)
        tiny.make_text(f.path / "long.txt", 2000)
    events = f.path / (out + ".events")
    command = ["long-model" if a == "model" else a for a in f.command(out, *LONG, "--log-json", events.name)]
    process = subprocess.Popen(command, cwd=f.path, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               start_new_session=True)
    while not events.exists() or '"event": "step"' not in events.read_text():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGSTOP)
    (manifest,) = (f.path / out).glob("cells/*.state/manifest.json")
    return process, manifest, partial(manifest)


def partial(manifest):
    return json.loads(manifest.read_text())["partial"]


def test_a_terminal_loses_no_step(f):
    """Ctrl-C and a closed terminal reach the cell twice, from the terminal and from its parent, and abort nothing."""
    for name in ("SIGINT", "SIGHUP", "SIGTERM"):
        process, manifest, before = begin_long_steps(f, "group-" + name)
        os.killpg(process.pid, getattr(signal, name))
        os.killpg(process.pid, signal.SIGCONT)
        said = process.communicate(timeout=120)[1]
        assert process.returncode == 130, (name, process.returncode, said)
        assert partial(manifest) and partial(manifest) != before, (name, said)


def test_a_terminal_aborts(f):
    """The second signal does: nothing waits for the end of the step, or saves it."""
    process, manifest, before = begin_long_steps(f, "aborted")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
        os.killpg(process.pid, number)
    said = process.communicate(timeout=120)[1]
    assert process.returncode in (-signal.SIGINT, -signal.SIGTERM), (process.returncode, said)
    assert partial(manifest) == before


def signal_first_cell(f, out, number):
    """Sends a signal to the first cell of a sweep while it calibrates."""
    process = subprocess.Popen(f.command(out, "--set", "calibration.epochs=250"), cwd=f.path, text=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not list((f.path / out).glob("cells/*.state/*")):
        assert process.poll() is None
        time.sleep(0.002)
    (cell,) = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert processes.send(int(cell), number), "the cell has ended before the signal"
    said = process.communicate(timeout=120)[1]
    return process.returncode, said, [r["name"] for r in f.rows(out)]


def test_a_killed_cell_does_not_stop_the_others(f):
    code, said, names = signal_first_cell(f, "cell-killed", signal.SIGKILL)
    assert code == 1 and names == [EVIL, "plain"], (code, names, said)
    assert "cell 'full method': its process was killed by SIGKILL (out of memory?)" in said, said
    assert "cell 'full method' failed; its state is kept" in said and "unknown" not in said, said
    assert len(list((f.path / "cell-killed/cells").glob("*.state"))) == 1


def test_an_interrupted_cell(f):
    code, said, names = signal_first_cell(f, "cell-stopped", signal.SIGTERM)
    assert code == 130 and names == [EVIL, "plain"], (code, names, said)
    assert "cell 'full method': interrupted" in said and "unknown" not in said, said
    assert len(list((f.path / "cell-stopped/cells").glob("*.state"))) == 1


def test_a_state_of_other_settings(f):
    """The sweep names it, and its size, and lets it stay. One whose cell is running elsewhere is not named."""
    code, said, _ = signal_first_cell(f, "changed", signal.SIGKILL)
    (state,) = (f.path / "changed").glob("cells/*.state")
    assert code == 1 and "not in this sweep" not in said, said
    size = sum(p.stat().st_size for p in state.iterdir())
    for _ in range(2):
        said = f.call(f.command("changed")).stderr
        assert f"changed/cells: 1 state of cells that are not in this sweep, {size / 1e6:.1f} MB: {state.name}; " in said, said
        assert state.is_dir()
    with open(state.with_suffix(".lock"), "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "not in this sweep" not in f.call(f.command("changed")).stderr


def test_a_kept_state(f):
    """A state that --keep kept is wanted, also in a sweep of other cells."""
    (f.path / "kept.yaml").write_text(SWEEP[:SWEEP.index("cells:")] + "cells: [{name: channel, set: {kv.method: channel}}]\n"
                                      "eval: {data: eval.txt, windows: 4, ctx: 64}\n")
    said = f.call(f.command("kept", "--keep", file="kept.yaml")).stderr
    said += f.call(f.command("kept", "--set", "calibration.epochs=1", file="kept.yaml")).stderr
    assert len(list((f.path / "kept").glob("cells/*.state"))) == 1 and "not in this sweep" not in said, said


if __name__ == "__main__":
    harness.main(globals(), Fixture)
