#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The shipped ablation on the demo model, within ten minutes on two cores: test_ablation.py WKVQ.

Differences are paired over windows, as in the report. A claim must exceed two standard errors. With this budget the
smallest one is six: many short windows say more than a few long ones. Start values alone would fulfil the claims, so
the full method must also have learned: its blocks lose less than at their start."""
import json
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import harness

ROOT = pathlib.Path(__file__).parents[2]
DEMO = ROOT / "data" / "demo"
LIMIT_S = 600
LEARNED = 0.08  # of the loss at the start, on average over blocks
BUDGET = harness.words(["calibration.samples=16", "calibration.seqlen=128", "calibration.epochs=2"])
CLAIMS = [  # lower loss, higher loss
    ("full precision", "full method"),
    ("full method", "without LWC"),
    ("full method", "RTN weights and token cache"),
    ("full method", "without 2D: token only"),
    ("GPTQ weights and token cache", "RTN weights and token cache"),
]


class Fixture(harness.Bench):
    timeout = 850

    def __init__(self, wkvq, folder):
        super().__init__(wkvq, folder)
        began = time.monotonic()
        self.run("sweep", ROOT / "configs/sweeps/ablation.yaml", "-c", ROOT / "configs/demo.yaml", *BUDGET, "-m", DEMO,
                 "-d", DEMO / "calibration.txt", "-e", DEMO / "heldout.txt", "--windows", "128", "--ctx", "128", "-j2", "-q",
                 "-o", "out")
        self.seconds = time.monotonic() - began
        with open(self.path / "out/results.jsonl") as lines:
            self.rows = {r["name"]: r for r in map(json.loads, lines)}
        self.run("report", "out")


def test_claims(f):
    refuted = []
    for low, high in CLAIMS:
        d = [b - a for a, b in zip(f.rows[low]["window_nll"], f.rows[high]["window_nll"], strict=True)]
        mean, error = statistics.mean(d), statistics.stdev(d) / len(d) ** 0.5
        print(f"{high} - {low}: {mean:+.5f} +- {error:.5f} nats")
        if not mean > 2 * error:
            refuted.append((high, low))
    assert not refuted, refuted


def test_the_full_method_learned(f):
    learned = statistics.mean(1 - b["best"] / b["start"] for b in f.rows["full method"]["blocks"])
    print(f"the full method learned {learned:.1%} of its blocks' losses away")
    assert learned >= LEARNED, learned


def test_cells(f):
    print(f"{len(f.rows)} cells in {f.seconds:.0f} s")
    unverified = [n for n, r in f.rows.items() if r.get("verified") is False]
    assert len(f.rows) == 13 and not unverified, unverified
    assert f.seconds <= LIMIT_S, f.seconds


if __name__ == "__main__":
    harness.main(globals(), Fixture)
