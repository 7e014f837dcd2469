#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Joins WikiText's rows as the literature does, for tools that read a plain file: python3 tools/peers/joined.py wiki.test.raw >OUT"""
import pathlib
import sys


def joined(text):
    """A line with its newline is a row, a blank line an empty row, rows joined by two newlines."""
    rows = [line + "\n" if line.strip() else "" for line in text.split("\n")[:-1]]
    return "\n\n".join(rows)


if __name__ == "__main__":
    sys.stdout.buffer.write(joined(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8")).encode())
