#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Splits JSON rows into texts to calibrate on and to test on, by whole documents:
python3 tools/peers/split.py FILE.jsonl FIELD SHARE OUT

Writes OUT.train.jsonl and OUT.test.jsonl with one {"text": ...} per distinct value of FIELD. Rows of one value
are one document, so none is on both sides. The documents are ordered by the SHA-256 of their text, and the first
SHARE of them (0 to 1, rounded, at least one) are for the test: the same documents give the same split."""
import hashlib
import json
import os
import sys


def fail(message):
    print(f"split.py: {message}", file=sys.stderr)
    sys.exit(2)


def documents(path, field):
    found = {}
    try:
        with open(path, encoding="utf-8") as f:
            for number, line in enumerate(f, 1):
                if not line.strip():
                    continue
                row = json.loads(line)
                text = row.get(field) if isinstance(row, dict) else None
                if not isinstance(text, str) or not text.strip():
                    fail(f"{path}: line {number}: no text in field '{field}'; name the field that holds the document")
                found[hashlib.sha256(text.encode()).hexdigest()] = text
    except (OSError, ValueError) as e:
        fail(f"{path}: cannot be read as JSON lines: {e}")
    return [found[key] for key in sorted(found)]


def write(path, texts):
    with open(path + ".part", "w", encoding="utf-8") as f:
        f.writelines(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts)
    os.replace(path + ".part", path)


def main(args):
    if len(args) != 4:
        fail("want FILE.jsonl FIELD SHARE OUT, as in: split.py code.jsonl context 0.5 code")
    path, field, share, out = args
    try:
        share = float(share)
    except ValueError:
        share = 0
    if not 0 < share < 1:
        fail(f"SHARE is '{args[2]}'; want the test's share of the documents, between 0 and 1")
    texts = documents(path, field)
    if len(texts) < 2:
        fail(f"{path}: {len(texts)} distinct documents in field '{field}'; a split needs two")
    n = min(max(round(share * len(texts)), 1), len(texts) - 1)
    try:
        write(out + ".test.jsonl", texts[:n])
        write(out + ".train.jsonl", texts[n:])
    except OSError as e:
        fail(f"{out}: cannot be written: {e}")
    print(f"{out}.train.jsonl: {len(texts) - n} documents, {out}.test.jsonl: {n}")


if __name__ == "__main__":
    main(sys.argv[1:])
