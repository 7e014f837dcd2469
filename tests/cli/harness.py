# SPDX-License-Identifier: MIT
"""A bench for tests of the command line: runs commands in a folder, and the tests of a file.

A file of tests ends with `harness.main(globals(), Fixture)`. It is run as FILE ARGUMENT... [TEST...]: all its tests, or
those that are named, each of which also runs alone."""
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import traceback

SKIPPED = 77  # the exit status of a test that cannot run


class Skip(Exception):
    """Raised by a test, or by what makes the fixture, that cannot run on this machine. Says why."""


class Bench:
    """The folder `path`, in which commands run. Output is text, or bytes if a subclass sets decode to False."""
    decode = True
    timeout = 300
    env = None

    def __init__(self, wkvq, folder):
        self.wkvq, self.path = str(pathlib.Path(wkvq).resolve()), pathlib.Path(folder)

    def call(self, args, want=0, env=None, stdin=None):
        """Runs a program with its arguments, and fails unless its exit status is `want`; None: any status. stdin: what it
        reads, as text or bytes."""
        if any(isinstance(a, (list, tuple)) for a in args):
            raise TypeError(f"an argument is a list: {args}")  # str() would make one word of it
        args = [str(a) for a in args]
        done = subprocess.run(args, cwd=self.path, env=env or self.env, capture_output=True, timeout=self.timeout,
                              text=self.decode, input=stdin)
        if want is not None and done.returncode != want:
            said = done.stderr if self.decode else done.stderr.decode(errors="replace")
            raise AssertionError(f"{' '.join(args)}\nexit {done.returncode}, want {want}\n{said}")
        return done

    def run(self, *args, **how):
        """Runs wkvq."""
        return self.call([self.wkvq, *args], **how)


def words(pairs):
    """Returns the words of a command line that set each "KEY=VALUE"."""
    return [word for pair in pairs for word in ("--set", pair)]


def choose(tests, names):
    """Returns those of the tests that are named, or all."""
    unknown = [name for name in names if name not in tests]
    if unknown:
        sys.exit(f"no such test: {', '.join(unknown)}; there are {', '.join(tests)}")
    if not tests:
        sys.exit("there is no test")
    return {name: tests[name] for name in names} or tests


def run_one(name, test, fixture):
    """Returns "ok", "FAIL" or "skip"."""
    began, outcome, why = time.monotonic(), "ok", ""
    try:
        test(fixture)
    except Skip as e:
        outcome, why = "skip", f": {e}"
    except (Exception, SystemExit):  # every test gets its turn
        traceback.print_exc(file=sys.stdout)
        outcome = "FAIL"
    print(f"{outcome:4} {name} ({time.monotonic() - began:.1f} s){why}", flush=True)
    return outcome


def run_group(tests, make, scratch):
    """Runs tests on one fixture. Returns their outcomes."""
    with scratch() as folder:
        fixture = make(folder)
        return [run_one(name, test, fixture) for name, test in tests.items()]


def main(names_of, make, arguments=1, fresh=False, scratch=tempfile.TemporaryDirectory):
    """Runs the functions test_... of a module's globals. make(*ARGUMENTS, FOLDER) makes what they are given, for each anew
    if fresh; it may raise Skip. scratch() makes the folder. Exits with 1 if a test failed, none ran or a name is unknown;
    else with 77 if one was skipped."""
    os.environ.pop("COLUMNS", None)
    given, names = sys.argv[1:1 + arguments], sys.argv[1 + arguments:]
    if len(given) < arguments:
        sys.exit(f"{sys.argv[0]}: want {arguments} arguments, and then names of tests")
    tests = choose({n: t for n, t in names_of.items() if n.startswith("test_") and callable(t)}, names)
    groups = [{name: test} for name, test in tests.items()] if fresh else [tests]
    try:
        outcomes = [o for group in groups for o in run_group(group, lambda folder: make(*given, folder), scratch)]
    except Skip as e:
        print("skipped:", e)
        sys.exit(SKIPPED)
    passed, failed, skipped = (outcomes.count(kind) for kind in ("ok", "FAIL", "skip"))
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    sys.exit(1 if failed else SKIPPED if skipped else 0)
