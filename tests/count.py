#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Add up a meson test log: prints PASSED FAILED SKIPPED, then the name and the end of the output of each failed test."""
import json
import sys

LINES = 15  # of a failed test's output
PASSED, FAILED, SKIPPED = range(3)


def outcome(test):
    """Returns PASSED, FAILED or SKIPPED for a test's record."""
    if test["result"] == "SKIP":
        return SKIPPED
    return PASSED if test["result"] in ("OK", "EXPECTEDFAIL") else FAILED


with open(sys.argv[1]) as log:
    tests = [json.loads(line) for line in log]
if not tests:
    sys.exit("no test ran")
outcomes = [outcome(test) for test in tests]
print(*(outcomes.count(kind) for kind in (PASSED, FAILED, SKIPPED)))
for test, kind in zip(tests, outcomes):
    if kind == FAILED:
        print(f"{test['name']}: {test['result']} after {test['duration'] or 0:.0f} s")
        said = test.get("stdout", "") + test.get("stderr", "")
        print(*("    " + line for line in said.splitlines()[-LINES:]), sep="\n")
