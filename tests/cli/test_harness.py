#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The harness of these tests, on small files of tests: test_harness.py.

What it counts, what it exits with, and that no failure is lost."""
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import harness

TESTS = """
def test_good(f):
    assert f.call(["cat"], stdin="a prompt").stdout == "a prompt"

def test_wrong(f):
    assert 1 + 1 == 3, "a sum"

def test_broken(f):
    {}["a key"]

def test_leaves(f):
    raise SystemExit(0)

def test_status(f):
    f.call(["sh", "-c", "echo of the program >&2; exit 3"])

def test_list(f):
    f.run(["inspect", "--json"], want=None)

def test_elsewhere(f):
    raise harness.Skip("not on this machine")

def test_state(f):
    (f.path / "once").mkdir()

def test_state_again(f):
    (f.path / "once").mkdir()
"""


def run(folder, *names, tests=TESTS, fixture="harness.Bench", more=""):
    """Runs a file of tests, with a program that is not called. Returns exit status and stdout; stderr joins it."""
    file = folder / "file.py"
    file.write_text(f"import sys\nsys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})\nimport harness\n{tests}\n"
                    f"harness.main(globals(), {fixture}{more})\n")
    done = subprocess.run([sys.executable, file, "wkvq", *names], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          check=False, timeout=60)
    return done.returncode, done.stdout


def test_every_failure_counts(folder):
    status, said = run(folder)
    assert status == 1 and said.splitlines()[-1] == "2 passed, 6 failed, 1 skipped", said
    for name in ("wrong", "broken", "leaves", "status", "list", "state_again"):
        assert f"FAIL test_{name} (" in said, (name, said)
    for text in ('assert 1 + 1 == 3, "a sum"', "KeyError: 'a key'", "SystemExit: 0", "an argument is a list", "exit 3, want 0\nof the program"):
        assert text in said, (text, said)
    assert said.count("Traceback") == 6, said


def test_named_tests_alone(folder):
    for names, want in ((["test_good"], 0), (["test_wrong"], 1), (["test_elsewhere"], harness.SKIPPED),
                        (["test_good", "test_elsewhere"], harness.SKIPPED), (["test_wrong", "test_elsewhere"], 1),
                        (["test_state_again"], 0)):
        status, said = run(folder, *names)
        assert status == want and len(said.splitlines()) >= len(names), (names, status, said)


def test_nothing_ran(folder):
    status, said = run(folder, "test_good", "test_god")
    assert status == 1 and "no such test: test_god" in said and "passed" not in said, said
    assert run(folder, tests="def check_nothing(f): pass")[0] == 1
    status, said = run(folder, fixture="lambda wkvq, folder: 1 / 0")
    assert status == 1 and "ZeroDivisionError" in said, said


def test_fixtures(folder):
    status, said = run(folder, "test_state", "test_state_again", more=", fresh=True")
    assert status == 0 and said.endswith("2 passed, 0 failed, 0 skipped\n"), said
    skip = "class Never(harness.Bench):\n    def __init__(self, *_):\n        raise harness.Skip('no machine')\n"
    status, said = run(folder, tests=TESTS + skip, fixture="Never")
    assert status == harness.SKIPPED and said == "skipped: no machine\n", said


if __name__ == "__main__":
    for test in (test_every_failure_counts, test_named_tests_alone, test_nothing_ran, test_fixtures):
        with tempfile.TemporaryDirectory() as scratch:
            test(pathlib.Path(scratch))  # not by harness.main(), which cannot judge itself
