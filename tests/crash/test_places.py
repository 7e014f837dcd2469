#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Places for an artifact and a state: test_places.py WKVQ_FAULT.

The working directory, links, mount points, parents that are not writable, file systems without locks; files that
belong to this job, and files that do not; a kill before every call that changes a file or a name. A mount needs a
namespace: if the system allows none, the test ends with exit 77."""
import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "cli"))
import harness
from crash_bench import SMALL, first_difference, make_model, run_fault, scratch, settings, tiny, tree

NOBODY = 65534


class Bench(harness.Bench):
    def __init__(self, wkvq, folder):
        super().__init__(wkvq, folder)
        os.chmod(folder, 0o755)
        self.folder = folder = self.path
        make_model(folder / "model")
        make_model(folder / "other", seed=2)
        tiny.make_text(folder / "text.txt", 400)
        self.rounding = settings({"weights.group_size": 16, "kv.group_size": 8})
        self.learning = ["--data", str(folder / "text.txt"), *settings(SMALL)]
        (folder / "want").mkdir()
        self.run("convert", self.model(), "-o", "rounded", *self.rounding, cwd=folder / "want")
        self.run("convert", self.model("other"), "-o", "another", *self.rounding, cwd=folder / "want")
        self.run("quantize", self.model(), "-o", "learned", "--keep-state", *self.learning, cwd=folder / "want")
        self.rounded, self.learned, self.state, self.another = (
            tree(folder / "want" / name) for name in ("rounded", "learned", "learned.state", "another"))

    def model(self, name="model"):
        return str(self.folder / name)

    def run(self, *args, cwd, want=0, user=None, fault=None):
        """user: an unprivileged one. fault: for fault.c; want None: any exit status."""
        threads = [] if args[0] == "inspect" else ["-j1"]
        command = [self.wkvq, *map(str, args), *threads]
        if user and os.geteuid() == 0:
            done = subprocess.run(command, cwd=cwd, capture_output=True, timeout=120, check=False, user=NOBODY,
                                  group=NOBODY, extra_groups=[])
        else:
            done = run_fault(command, cwd, fault or "")
        done.stdout, done.stderr = done.stdout.decode(), done.stderr.decode()
        if want is not None and done.returncode != want:
            raise AssertionError(f"{' '.join(map(str, args))}: exit {done.returncode}, want {want}\n{done.stderr}")
        return done

    @contextlib.contextmanager
    def fresh(self):
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            os.chmod(name, 0o755)
            yield pathlib.Path(name)


def expect(folder, want, about):
    problem = first_difference(tree(folder), want)
    assert not problem, f"{about}: {problem}"


def names(folder):
    return sorted(p.name for p in pathlib.Path(folder).iterdir())


# --- the working directory and links ------------------------------------------------------------------------------


def test_here(b):
    """-o . and its spellings: the working directory has the artifact."""
    for spelling in (".", "./", "$PWD", "../here", "../here/", "../link"):
        with b.fresh() as top:
            here = top / "here"
            here.mkdir()
            (top / "link").symlink_to("here")
            inode = here.stat().st_ino
            out = str(here) if spelling == "$PWD" else spelling
            b.run("convert", b.model(), "-o", out, *b.rounding, cwd=here)
            expect(here, b.rounded, f"convert -o {spelling}")
            b.run("convert", b.model(), "-o", out, *b.rounding, cwd=here, want=2)
            b.run("convert", b.model("other"), "-o", out, "--force", *b.rounding, cwd=here)
            expect(here, b.another, f"convert -o {spelling} --force")
            assert here.stat().st_ino == inode, f"-o {spelling}: another directory took the place of the shell's"
            assert names(top) == ["here", "link"], names(top)


def test_here_with_a_state(b):
    for spelling in (".", "./", "../here/.", "../link"):
        with b.fresh() as top:
            here = top / "here"
            here.mkdir()
            (top / "link").symlink_to("here")
            b.run("quantize", b.model(), "-o", spelling, "--keep-state", *b.learning, cwd=here)
            expect(here, b.learned, f"quantize -o {spelling}")
            state = "link.state" if spelling == "../link" else "here.state"
            assert names(top) == sorted(["here", "link", state]), names(top)
            b.run("quantize", b.model(), "-o", spelling, *b.learning, cwd=here)
            expect(here, b.learned, f"quantize -o {spelling}, again")
            assert names(top) == ["here", "link"], names(top)
    for spelling in (".", "./", "../here", "../link/"):
        with b.fresh() as top:
            (top / "here").mkdir()
            (top / "link").symlink_to("here")
            b.run("calibrate", b.model(), "-o", spelling, *b.learning, cwd=top / "here")
            expect(top / "here", b.state, f"calibrate -o {spelling}")


def test_links(b):
    with b.fresh() as top:
        (top / "real").mkdir()
        (top / "link").symlink_to("real")
        (top / "dangling").symlink_to("nowhere")
        b.run("convert", b.model(), "-o", "link/", *b.rounding, cwd=top)
        expect(top / "real", b.rounded, "through a link")
        assert (top / "link").is_symlink()
        for command, more in (("convert", b.rounding), ("quantize", b.learning), ("quantize", [*b.learning, "--plan"]),
                              ("calibrate", b.learning), ("calibrate", [*b.learning, "--plan"])):
            done = b.run(command, b.model(), "-o", "dangling", *more, cwd=top, want=2)
            assert "link to a directory that does not exist" in done.stderr, done.stderr
        assert names(top) == ["dangling", "link", "real"], names(top)


# --- places where a rename fails ----------------------------------------------------------------------------------


def test_closed_parent(b):
    """An unprivileged user owns OUT, and root owns its parent: all files are written inside OUT."""
    if os.geteuid() != 0:
        raise harness.Skip("two users need root")
    with b.fresh() as top:
        out = top / "out"
        out.mkdir()
        os.chown(out, NOBODY, NOBODY)
        b.run("convert", b.model(), "-o", out, *b.rounding, cwd="/", user=True)
        expect(out, b.rounded, "convert in a closed parent")
        b.run("convert", b.model("other"), "-o", out, "--force", *b.rounding, cwd="/", user=True)
        expect(out, b.another, "convert --force in a closed parent")
        shutil.rmtree(out)
        out.mkdir()
        os.chown(out, NOBODY, NOBODY)
        b.run("quantize", b.model(), "-o", out, *b.learning, cwd="/", user=True)
        expect(out, b.learned, "quantize in a closed parent")
        assert names(top) == ["out"], names(top)
        for place in (top / "new", top / "new" / "deep"):
            for command, more in (("convert", b.rounding), ("quantize", b.learning), ("calibrate", b.learning),
                                  ("quantize", [*b.learning, "--plan"]), ("calibrate", [*b.learning, "--plan"])):
                done = b.run(command, b.model(), "-o", place, *more, cwd="/", user=True, want=2)
                assert "ermission denied" in done.stderr, done.stderr
                assert f"{top}: cannot be written" in done.stderr or f"{top}/new: " in done.stderr, done.stderr
        os.chown(out, 0, 0)
        done = b.run("convert", b.model(), "-o", out, "--force", *b.rounding, cwd="/", user=True, want=2)
        assert "cannot be written" in done.stderr, done.stderr
        expect(out, b.learned, "an artifact of another user")


def test_state_and_output_in_one_place(b):
    """By whatever names: refused before the calibration, not after it."""
    with b.fresh() as top:
        (top / "real").mkdir()
        (top / "link").symlink_to("real")
        for out, state in (("x", "x"), ("x", "./x"), ("x", top / "x/"), ("real", "link"), ("link", "real/"), ("x", "x/s"),
                           ("x/y", "x"), ("real/y/z", "link/y"), ("new/deep", "./new/deep/s"), (".", "s"), ("s", ".")):
            done = b.run("quantize", b.model(), "-o", out, "--state", state, *b.learning, cwd=top, want=2)
            assert "a directory each" in done.stderr or "inside the other" in done.stderr, done.stderr
            assert names(top) == ["link", "real"] and not names(top / "real"), names(top)
        for out, state in (("x", "xs"), ("a/x", "a/s"), ("real", "link/.wkvq-state")):
            b.run("quantize", b.model(), "-o", out, "--state", state, *b.learning, cwd=top)
            expect(top / out, b.learned, f"{out} {state}")


def test_closed_model(b):
    """What this user may not look into is not called missing."""
    if os.geteuid() != 0:
        raise harness.Skip("two users need root")
    with b.fresh() as top:
        closed = top / "closed"
        shutil.copytree(b.model(), closed / "model")
        shutil.copytree(b.model(), top / "linked")
        (top / "linked/config.json").unlink()
        (top / "linked/config.json").symlink_to(closed / "model/config.json")
        os.chmod(closed, 0o700)
        for command in (["inspect"], ["verify"], ["generate", "-p", "x"], ["convert", "-o", "/tmp/never", *b.rounding],
                        ["convert", "-o", "/tmp/never", "--state", closed / "state"]):
            for place in (closed, closed / "model", top / "linked"):
                if command[0] in ("verify", "generate") and place == top / "linked":
                    continue
                done = b.run(command[0], place, *command[1:], cwd="/", user=True, want=2)
                assert "ermission denied" in done.stderr, done.stderr


def test_mount_point(b):
    """OUT is a mount point, of another file system and of the same one."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        raise harness.Skip("no namespace for a mount")
    for mount in ("mount -t tmpfs none out", "mount --bind disk out"):
        with b.fresh() as top:
            (top / "out").mkdir()
            (top / "disk").mkdir()
            convert = f"{b.wkvq} convert -j1 {' '.join(b.rounding)} -o out"
            learn = f"{b.wkvq} quantize -j1 {b.model()} {' '.join(b.learning)}"
            script = f"""set -e
{mount}
{convert} {b.model()}
cp -r out first
{convert} --force {b.model('other')}
cp -r out second
rm -r out/*
{learn} -o out --keep-state
test -f out/.wkvq-state/manifest.json
{learn} -o out
cp -r out third
test ! -e out/.wkvq-state
mkdir s && {mount.replace(' out', ' s')}
rm -rf s/*
{learn} -o fourth --state s
"""
            done = subprocess.run(["unshare", "-m", "sh", "-c", script], cwd=top, capture_output=True, text=True,
                                  timeout=120, check=False)
            assert done.returncode == 0, f"{mount}: {done.stderr}"
            expect(top / "first", b.rounded, mount)
            expect(top / "second", b.another, mount)
            expect(top / "third", b.learned, mount)
            expect(top / "fourth", b.learned, mount)
            assert names(top) == ["disk", "first", "fourth", "out", "s", "second", "third"], names(top)


def readable(b, folder):
    """Returns what a reader of the place sees: an artifact's bytes, or None."""
    done = b.run("inspect", folder, "--json", cwd=b.folder, want=None)
    if done.returncode == 0 and json.loads(done.stdout)["kind"] == "artifact":
        data = {k: v for k, v in tree(folder).items() if not k.startswith(".wkvq.tmp.")}
        return data
    refusals = "manifest.json: no such file", "config.json: no such file"
    assert done.returncode == 2 and any(r in done.stderr for r in refusals), done.stderr
    return None


def test_kill_inside(b):
    """Kills before every call: a reader sees the old artifact, the new one, or none; the next run ends with the new one."""
    for old, name in ((b.another, "replaced"), ({}, "new")):
        n, seen = 0, {"old": 0, "new": 0, "none": 0}
        while True:
            n += 1
            with b.fresh() as top:
                out = top / "out"
                shutil.copytree(b.folder / "want" / "another", out) if old else out.mkdir()
                args = ["convert", b.model(), "-o", ".", "--force", *b.rounding]
                done = b.run(*args, cwd=out, want=None, fault=f"file:{n}:kill")
                if done.returncode == 0:
                    break
                assert done.returncode == -signal.SIGKILL, done.stderr
                have = readable(b, out)
                assert have in (None, old, b.rounded), f"{name}, call {n}: a mixture"
                seen["none" if have is None else "old" if have == old else "new"] += 1
                b.run(*args, cwd=out)
                expect(out, b.rounded, f"{name}, killed before call {n}")
                assert names(top) == ["out"], names(top)
        assert n > 20 and seen["old" if old else "none"] and seen["new"], (n, seen)
        print(f"     {name}: {n - 1} kills, then a reader saw {seen}")


def test_error_inside(b):
    """A rename fails: all files are unchanged."""
    kinds = 0
    for n in range(1, 40):
        with b.fresh() as top:
            out = top / "out"
            shutil.copytree(b.folder / "want" / "another", out)
            args = ["convert", b.model(), "-o", ".", "--force", *b.rounding]
            done = b.run(*args, cwd=out, want=None, fault=f"rename:{n}:EIO")
            if done.returncode == 0:
                expect(out, b.rounded, f"rename {n}")
                continue
            kinds += 1
            assert done.returncode == 1 and "Input/output error" in done.stderr, done.stderr
            expect(out, b.another, f"rename {n} failed")
    assert kinds > 10, kinds


# --- files of this job --------------------------------------------------------------------------------------------


def test_only_this_states_artifact(b):
    """A state does not imply --force: only the artifact that was written from it is replaced."""
    with b.fresh() as top:
        learn = ["quantize", b.model(), "-o", "x", *b.learning]
        b.run(*learn, "--keep-state", cwd=top)
        b.run(*learn, "--keep-state", cwd=top)  # its own: the same bytes again
        expect(top / "x", b.learned, "again")
        b.run("convert", b.model("other"), "-o", "x", "--force", *b.rounding, cwd=top)
        for more in ([], ["--plan"]):
            done = b.run(*learn, *more, cwd=top, want=2)
            assert "--force" in done.stderr, done.stderr
            expect(top / "x", b.another, "another job's artifact")
        b.run("convert", b.model(), "-o", "x", "--force", *b.rounding, cwd=top)  # the same checkpoint, no state
        b.run(*learn, cwd=top, want=2)
        expect(top / "x", b.rounded, "an artifact of no state")
        b.run(*learn, "--force", cwd=top)
        expect(top / "x", b.learned, "with --force")


def kill_at_the_end(b, out, cwd):
    """Kills before every one of the last calls, which include those that put the artifact in place."""
    learn = ["quantize", b.model(), "-o", out, *b.learning, "--json"]
    with b.fresh() as top:
        count = top / "count"
        (top / cwd).mkdir(exist_ok=True)
        env = dict(os.environ, FAULT_COUNT=str(count))
        subprocess.run([b.wkvq, *learn, "-j1"], cwd=top / cwd, env=env, check=True, capture_output=True)
        calls = int(dict(line.split() for line in count.read_text().splitlines())["file"])
    seen = 0
    for n in range(calls, calls - 30, -1):
        with b.fresh() as top:
            (top / cwd).mkdir(exist_ok=True)
            done = b.run(*learn, cwd=top / cwd, want=None, fault=f"file:{n}:kill")
            assert done.returncode == -signal.SIGKILL, (n, done.stderr)
            seen += (top / "x" / "manifest.json").exists()
            done = b.run(*learn, cwd=top / cwd)
            assert json.loads(done.stdout)["passed"] is True, done.stdout
            expect(top / "x", b.learned, f"-o {out}, killed before call {n}")
            assert names(top) == ["x"], f"-o {out}, call {n}: {names(top)}"
    assert 8 < seen < 30, seen
    print(f"     -o {out}: {seen} kills after the artifact was in place, {30 - seen} before")


def test_kill_at_the_end(b):
    """Checks that the same command succeeds without --force."""
    kill_at_the_end(b, "x", ".")
    kill_at_the_end(b, ".", "x")


def test_a_removed_state_of_another_job(b):
    """The remains of a state do not permit replacing another artifact."""
    with b.fresh() as top:
        learn = ["quantize", b.model(), "-o", "x", *b.learning]
        b.run(*learn, cwd=top)
        (top / "x.state").mkdir()
        done = b.run("quantize", b.model("other"), "-o", "x", *b.learning, cwd=top, want=2)
        assert "--force" in done.stderr, done.stderr
        expect(top / "x", b.learned, "an empty state")
        b.run(*learn, cwd=top)
        assert names(top) == ["x"], names(top)


def test_no_locks(b):
    """A file system without flock: a file with the owner is the lock. It is taken over from a dead owner, and removed."""
    for error in ("ENOSYS", "ENOLCK", "EOPNOTSUPP"):
        with b.fresh() as top:
            calibrate = ["calibrate", b.model(), "-o", "s", *b.learning]
            done = b.run(*calibrate, cwd=top, fault=f"lock:1+:{error}")
            assert "no locks" in done.stderr, done.stderr
            expect(top / "s", b.state, error)
    with b.fresh() as top:
        script = ("import os, signal, subprocess, sys, time\n"
                  "p = subprocess.Popen(sys.argv[1:])\n"
                  "while not os.path.exists('s/lock.owner'): time.sleep(0.001)\n"
                  "p.send_signal(signal.SIGKILL)\n"
                  "p.wait()\n")
        env = dict(os.environ, FAULT="lock:1+:ENOSYS")
        subprocess.run([sys.executable, "-c", script, b.wkvq, *calibrate, "-j1"], cwd=top, env=env, check=True,
                       capture_output=True)
        assert (top / "s" / "lock.owner").exists()
        done = b.run(*calibrate, cwd=top, fault="lock:1+:ENOSYS")
        assert "taken over" in done.stderr, done.stderr
        expect(top / "s", b.state, "after a dead owner")
        far = "wkvq-owner 1\nhost far\nboot b\npidns p\npid 1\nstart 2\n"
        (top / "s" / "lock.owner").write_text(far)
        done = b.run(*calibrate, cwd=top, fault="lock:1+:ENOSYS", want=2)
        assert "process 1 on far" in done.stderr and "lock.owner" in done.stderr, done.stderr
        assert (top / "s" / "lock.owner").read_text() == far


if __name__ == "__main__":
    harness.main(globals(), Bench, scratch=scratch)
