#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Signals, closed outputs, and the advice of their messages: test_signals.py WKVQ DEMO_DIR [TEST...]."""
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import harness
import test_pipeline
from test_pipeline import wait_for_event

AGAIN = b"press Ctrl-C again to abort"


class Fixture(test_pipeline.Fixture):
    def __init__(self, wkvq, demo, folder):
        super().__init__(wkvq, folder)
        self.demo = str(pathlib.Path(demo).resolve())


def begin(f, out, ignored=(), **streams):
    """Starts a calibration with some signals ignored, and returns when it is in block 1."""
    log = f.path / "events.json"
    log.unlink(missing_ok=True)
    for name in (out, out + ".state"):
        shutil.rmtree(f.path / name, ignore_errors=True)

    def prepare():
        for sig in ignored:
            signal.signal(sig, signal.SIG_IGN)

    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, **streams}
    process = subprocess.Popen(f.command(out, "--log-json", str(log)), cwd=f.path, preexec_fn=prepare, **streams)
    wait_for_event(log, '"epoch", "block": 1', process)
    return process


def saved(f, out):
    manifest = json.loads((f.path / (out + ".state") / "manifest.json").read_text())
    assert 1 <= len(manifest["done"]) < 4 and manifest["partial"], manifest


def test_signals_that_save(f):
    for sig in (signal.SIGHUP, signal.SIGXCPU, signal.SIGTERM):
        process = begin(f, "stopped")
        process.send_signal(sig)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 130, (sig, process.returncode, stderr)
        assert AGAIN in stderr and b"Run the same command again to continue." in stderr, stderr
        saved(f, "stopped")
        f.call(f.command("stopped"))
        f.expect_reference("stopped", f"after {sig.name}")


def test_hangups_do_not_abort(f):
    """A closing terminal sends more than one."""
    process = begin(f, "hung")
    for _ in range(5):
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGXCPU)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, (process.returncode, stderr)
    assert stderr.count(AGAIN) == 1, stderr
    saved(f, "hung")


def test_the_second_signal_aborts(f):
    """Both are pending when the process continues, so that no step ends between them."""
    process = begin(f, "killed")
    process.send_signal(signal.SIGSTOP)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGINT, -signal.SIGTERM), process.returncode
    f.call(f.command("killed"))
    f.expect_reference("killed", "aborted")


def test_the_same_signal_at_once_is_no_second_one(f):
    """As `timeout` sends it: to its child, and to the group in which the child is."""
    process = begin(f, "echoed")
    for _ in range(5):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.001)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and stderr.count(AGAIN) == 1, (process.returncode, stderr)
    saved(f, "echoed")


def test_a_file_that_is_cut_short(f):
    """While it is mapped: the message names it, and what is kept stays good."""
    process = begin(f, "cut")
    process.send_signal(signal.SIGSTOP)
    [path] = (f.path / "model").resolve().glob("*.safetensors")
    whole = path.read_bytes()
    os.truncate(path, 4096)
    process.send_signal(signal.SIGCONT)
    _, stderr = process.communicate(timeout=60)
    path.write_bytes(whole)
    assert process.returncode == 1, (process.returncode, stderr)
    said = stderr.decode().splitlines()[-2:]
    assert said[0].startswith(f"wkvq: {path}: cut short while it was in use"), said
    assert said[1] == "interrupted; cut.state has the finished work, and the same command continues from there", said
    f.call(f.command("cut"))
    f.expect_reference("cut", "a cut file")


def test_ignored_signals_stay_ignored(f):
    """Signals that are ignored at the start, as by nohup and background jobs of a shell."""
    every = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    process = begin(f, "ignored", every)
    for sig in every:
        process.send_signal(sig)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0 and AGAIN not in stderr, (process.returncode, stderr)
    f.expect_reference("ignored", "ignored signals")
    process = begin(f, "nohup", (signal.SIGHUP,))
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130, process.returncode


def handles(process, sig):
    """Whether the process has a handler of its own for the signal."""
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    caught = int(re.search(r"SigCgt:\s*([0-9a-f]+)", status)[1], 16)
    return caught >> (sig - 1) & 1


def test_commands_that_keep_nothing_say_so(f):
    """They read a text that does not end, or measure for longer than the test waits."""
    f.reference()
    small = ["--set", "calibration.samples=4", "--set", "calibration.seqlen=32"]
    for args, sig in ((["eval", "model", "--data", "-", "--ctx", "64"], signal.SIGINT),
                      (["quantize", "model", "--data", "-", "-o", "no", "--plan", *small], signal.SIGTERM),
                      (["verify", "reference", "--against", "model", "--data", "-"], signal.SIGINT),
                      (["tokenize", "model", "-"], signal.SIGHUP),
                      (["bench", "kernels"], signal.SIGTERM)):
        process = subprocess.Popen([f.wkvq, *args], cwd=f.path, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE)
        while process.poll() is None and not handles(process, sig):
            time.sleep(0.001)
        process.send_signal(sig)
        process.wait(60)
        said = process.stderr.read()
        process.stdin.close()
        process.stderr.close()
        assert process.returncode == 130, (args, process.returncode, said)
        assert said.count(b"interrupted; nothing was kept since this run began; run the same command again") == 1, (args, said)
        assert not (f.path / "no").exists()


def closed_pipe():
    """Returns the writing end of a pipe without a reader."""
    read, write = os.pipe()
    os.close(read)
    return write


def test_closed_outputs(f):
    """If nobody reads the log, work continues. If nobody reads the result, the command ends quietly with the status of
    programs that SIGPIPE ends; a full disk is an error."""
    out = closed_pipe()
    process = begin(f, "unheard", stderr=out)
    assert process.wait(120) == 0, process.returncode
    os.close(out)
    f.expect_reference("unheard", "without a reader of stderr")
    f.reference()
    for args in (["generate", "reference", "-p", "the", "-n", "200"], ["inspect", "reference"], ["inspect", "reference", "--json"],
                 ["inspect", "--help"], ["--help"], ["--man"]):
        out = closed_pipe()
        done = subprocess.run([f.wkvq, *args], cwd=f.path, stdout=out, stderr=subprocess.PIPE, timeout=60)
        os.close(out)
        assert done.returncode == 141 and not done.stderr, (args, done)
    with open("/dev/full", "wb") as full:
        for args in (["generate", "reference", "-p", "the", "-n", "20"], ["inspect", "reference"], ["inspect", "--help"],
                     ["--help"]):
            done = subprocess.run([f.wkvq, *args], cwd=f.path, stdout=full, stderr=subprocess.PIPE, timeout=60)
            assert done.returncode == 1 and done.stderr.count(b"No space left") == 1, (args, done)


def test_a_reader_that_has_enough(f):
    """As `| head -c 10`: generation ends soon after the reader, and says nothing."""
    f.reference()
    process = subprocess.Popen([f.wkvq, "generate", "reference", "-p", "the", "-n", "200"], cwd=f.path,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.read(1)
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 141 and not said, (process.returncode, said)


def test_work_is_finished_for_nobody(f):
    """A calibration whose report nobody reads: the artifact is whole, its state is removed, and nothing is printed."""
    for form in ([], ["--json"]):
        command = [a for a in f.command("unread", *form) if a != "--keep-state"]
        shutil.rmtree(f.path / "unread", ignore_errors=True)
        out = closed_pipe()
        done = subprocess.run([*command, "-q"], cwd=f.path, stdout=out, stderr=subprocess.PIPE, timeout=120)
        os.close(out)
        assert done.returncode == 141 and not done.stderr, done
        assert f.files("unread") == f.reference()[0]
        assert not (f.path / "unread.state").exists()


def test_advice_after_a_loss_that_is_not_finite(f):
    """Follows the message: a new state with lower rates. The old state refuses them with advice."""
    recipe = ["calibration.samples=8", "calibration.seqlen=64", "calibration.epochs=4"]

    def command(name, *more, rate="10"):
        sets = [w for pair in (*recipe, "optimizer.lr_smooth=" + rate) for w in ("--set", pair)]
        return [f.wkvq, name, f.demo, "--data", f.demo + "/calibration.txt", "-j1", *sets, *more]

    done = f.call(command("quantize", "-o", "nan"), want=1)
    assert b"is not finite" in done.stderr, done.stderr
    assert b"with lower optimizer.lr_* or with --set run.compute=f32, in a new state directory" in done.stderr
    assert b"quantize: --state NEW; calibrate: -o NEW" in done.stderr, done.stderr
    refused = f.call(command("quantize", "-o", "nan", rate="0.01"), want=2)
    assert b"name another state directory, or delete this one to start over" in refused.stderr, refused.stderr
    f.call(command("quantize", "-o", "nan", "--state", "new", rate="0.01"))
    f.call(command("calibrate", "-o", "new2", rate="0.01"))
    again = f.call(command("quantize", "-o", "other", "--state", "nan.state"), want=1)  # the same bytes, the same end
    first = [x for x in done.stderr.splitlines() if x.startswith(b"wkvq ")]
    assert first and first == [x for x in again.stderr.splitlines() if x.startswith(b"wkvq ")], again.stderr
    shutil.rmtree(f.path / "nan.state")
    shutil.rmtree(f.path / "nan")
    f.call(command("quantize", "-o", "nan", rate="0.01"))  # deleted to start over


def test_advice_to_finish_a_calibration(f):
    """An unfinished state of quantize is finished by calibrate, converted, and simulated."""
    process = begin(f, "half")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    saved(f, "half")
    done = f.run("convert", "model", "--state", "half.state", "-o", "half", want=2)
    assert b"let `wkvq calibrate` finish" in done.stderr, done.stderr
    finish = f.command("half.state")
    finish[1] = "calibrate"
    f.call([a for a in finish if a != "--keep-state"])
    f.run("convert", "model", "--state", "half.state", "-o", "half", "-j1")
    assert f.files("half")["model.safetensors"] == f.reference()[0]["model.safetensors"]


if __name__ == "__main__":
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGXCPU):
        signal.signal(number, signal.SIG_DFL)  # under nohup or in a pipeline of a shell they may be ignored
    harness.main(globals(), Fixture, arguments=2)
