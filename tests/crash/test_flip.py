#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""One flipped bit in a state or an artifact: test_flip.py WKVQ_FAULT [--flips N] [--seed S]. Bits of every tensor of
the artifact and of every file of both are flipped at seeded places. The message names the file, and an artifact's tensor."""
import argparse
import json
import pathlib
import random
import struct
import sys

from crash_bench import SMALL, Job, make_model, scratch, settings, tiny


def tensor_at(data, place):
    """Returns the tensor of a safetensors file with this byte; None in the header."""
    n = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + n])
    for name, t in header.items():
        if name != "__metadata__" and t["data_offsets"][0] <= place - 8 - n < t["data_offsets"][1]:
            return name
    return None


def flip(job, folder, file, place, bit, artifact):
    good = file.read_bytes()
    bad = bytearray(good)
    bad[place] ^= 1 << bit
    file.write_bytes(bad)
    done = job.run(folder)
    file.write_bytes(good)
    tensor = tensor_at(good, place) if artifact and file.suffix == ".safetensors" else None
    message = done.stderr.decode(errors="replace")
    if done.returncode in (2, 3) and file.name in message and (not tensor or tensor in message):
        return None
    return f"{file.name} byte {place} bit {bit} ({tensor}): exit {done.returncode}: {message}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("wkvq")
    parser.add_argument("--flips", type=int, default=120)
    parser.add_argument("--seed", type=int, default=20240212)
    a = parser.parse_args()
    wkvq, rng = str(pathlib.Path(a.wkvq).resolve()), random.Random(a.seed)
    bad = []
    with scratch() as name:
        folder = pathlib.Path(name) / "job"
        folder.mkdir()
        make_model(folder / "model")
        tiny.make_text(folder / "text.txt", 400)
        Job("make", [wkvq, "quantize", "model", "--data", "text.txt", "-o", "out", "--keep-state",
                     "-j1", *settings(SMALL)]).learn(folder)
        read = {"out": Job("verify", [wkvq, "verify", "out"]),
                "out.state": Job("convert", [wkvq, "convert", "model", "--state", "out.state",
                                             "-o", "again", "--force", "-j1"])}
        for i in range(a.flips):
            top = ("out", "out.state")[i % 2]
            files = sorted(f for f in (folder / top).iterdir() if f.stat().st_size)
            file = files[i // 2 % len(files)]
            place = rng.randrange(file.stat().st_size)
            bad.append(flip(read[top], folder, file, place, rng.randrange(8), top == "out"))
    bad = [problem for problem in bad if problem]
    for problem in bad:
        print("FAIL", problem)
    print(f"{a.flips} flipped bits, {len(bad)} not found or not named, seed {a.seed}")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
