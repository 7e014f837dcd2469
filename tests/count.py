#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Add up a meson test log: prints PASSED FAILED SKIPPED."""
import json
import sys

counts = [0, 0, 0]
with open(sys.argv[1]) as log:
    for line in log:
        result = json.loads(line)["result"]
        counts[0 if result in ("OK", "EXPECTEDFAIL") else 2 if result == "SKIP" else 1] += 1
if not sum(counts):
    sys.exit("no test ran")
print(*counts)
