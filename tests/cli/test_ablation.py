#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The shipped ablation on the demo model, within ten minutes on two cores: test_ablation.py WKVQ.

Differences are paired over windows, as in the report. A claim must exceed two standard errors. With this budget the
smallest one is six: many short windows say more than a few long ones. Start values alone would fulfil the claims, so
the full method must also have learned: its blocks lose less than at their start."""
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
DEMO = ROOT / "data" / "demo"
LIMIT_S = 600
LEARNED = 0.08  # of the loss at the start, on average over blocks
BUDGET = [w for s in ("samples=16", "seqlen=128", "epochs=2") for w in ("--set", f"calibration.{s}")]
CLAIMS = [  # lower loss, higher loss
    ("full precision", "full method"),
    ("full method", "without LWC"),
    ("full method", "RTN weights and token cache"),
    ("full method", "without 2D: token only"),
    ("GPTQ weights and token cache", "RTN weights and token cache"),
]


def main():
    wkvq = str(pathlib.Path(sys.argv[1]).resolve())
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        subprocess.run([wkvq, "sweep", ROOT / "configs/sweeps/ablation.yaml", "-c", ROOT / "configs/demo.yaml",
                        *BUDGET, "-m", DEMO, "-d", DEMO / "calibration.txt",
                        "-e", DEMO / "heldout.txt", "--windows", "128", "--ctx", "128", "-j2", "-q",
                        "-o", f"{folder}/out"], check=True)
        seconds = time.monotonic() - began
        rows = {r["name"]: r for r in map(json.loads, open(f"{folder}/out/results.jsonl"))}
        subprocess.run([wkvq, "report", f"{folder}/out"], check=True)
    bad = 0
    for low, high in CLAIMS:
        d = [b - a for a, b in zip(rows[low]["window_nll"], rows[high]["window_nll"], strict=True)]
        mean, error = statistics.mean(d), statistics.stdev(d) / len(d) ** 0.5
        holds = mean > 2 * error
        bad += not holds
        print(f"{'ok' if holds else 'FAIL'} {high} - {low}: {mean:+.5f} +- {error:.5f} nats")
    blocks = rows["full method"]["blocks"]
    learned = statistics.mean(1 - b["best"] / b["start"] for b in blocks)
    bad += not learned >= LEARNED
    print(f"{'ok' if learned >= LEARNED else 'FAIL'} the full method learned {learned:.1%} of its blocks' losses away")
    unverified = [n for n, r in rows.items() if r.get("verified") is False]
    print(f"{len(rows)} cells in {seconds:.0f} s, not verified: {unverified}")
    return bad or len(rows) != 13 or bool(unverified) or not seconds <= LIMIT_S


if __name__ == "__main__":
    sys.exit(main())
