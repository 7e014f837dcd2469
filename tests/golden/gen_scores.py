#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes answers with their scores by the published definitions to tests/golden/scores.json. Standard library only.

Word F1 is SQuAD's: lower case, no ASCII punctuation, no articles, white space collapsed, then the harmonic mean of
precision and recall over the two bags of words. Code similarity is round(100 * difflib ratio) of the answer's first
line that is neither comment nor code fence."""
import collections
import difflib
import json
import pathlib
import random
import re
import string

PUNCTUATION = set(string.punctuation)


def normalize(text):
    bare = "".join(c for c in text.lower() if c not in PUNCTUATION)
    return " ".join(re.sub(r"\b(?:a|an|the)\b", " ", bare).split())


def f1(answer, want):
    a, b = normalize(answer).split(), normalize(want).split()
    same = sum((collections.Counter(a) & collections.Counter(b)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(a), same / len(b)
    return 2 * precision * recall / (precision + recall)


def code_line(answer):
    for line in answer.lstrip("\n").split("\n"):
        if not any(mark in line for mark in ("`", "#", "//")):
            return line
    return ""


def ratio(a, b):
    return difflib.SequenceMatcher(None, a, b).ratio()


QA = [
    ("The Eiffel Tower", "eiffel tower"), ("an answer, a guess; the end.", "Answer guess end"), ("", ""), ("", "x"),
    ("the a an", "a"), ("It's a dog's life!", "its dogs life"), ("Yes", "No"), ("one one two", "one two two"),
    ("theatre an-d a_b", "Theatre and ab"), ("the\u0301 day", "day"), ("L\u2019\u00c9t\u00e9 \u2014 1998", "l\u2019\u00e9t\u00e9 1998"),
    ("a\u00a0b\u2003the c\u3000d", "b c d"), ("\u041c\u043e\u0441\u043a\u0432\u0430", "\u043c\u043e\u0441\u043a\u0432\u0430"),
    ("New York City, the Big Apple\n\nQuestion:", "New York"), ("12,5 %", "125"), ("x\x1cy", "x y"),
    ("\u6771\u4eac the \u6771\u4eac", "\u6771\u4eac"), ("a. a. milne", "A.A. Milne"), ("caf\u00e9 a\u00df the", "CAF\u00c9 a\u00df"),
]
CODE = [
    ("return x", "return y"), ("", ""), ("", "abc"), ("# note\n// more\n```c\n    int a = 1;\nint b;", "    int a = 2;"),
    ("\n\n  foo(bar)\nbaz", "foo(bar)"), ("`only`\n#", "x"), ("abcd", "bcde"), ("ab" * 120, "ba" * 130),
    ("a/b", "a/b"), ("\u00e9\u00e8\u00ea", "\u00e9\u00ea"), ("private Thread currentThread;", "private volatile Thread currentThread;"),
]


def random_pairs(rng, count):
    """Lines of code-like characters, and a copy with edits; some beyond 200 characters, where the rule for popular
    characters applies."""
    letters = string.ascii_letters + string.digits + " ().,=_[]" + "\u00e9\u4e2d"
    for i in range(count):
        size = rng.choice([3, 10, 40, 150, 199, 200, 260, 500])
        some = letters[:rng.choice([2, 5, 20, len(letters)])]
        b = "".join(rng.choice(some) for _ in range(size))
        a = list(b) if i % 3 else [rng.choice(some) for _ in range(size)]
        for _ in range(rng.randrange(size // 2 + 1)):
            at = rng.randrange(len(a) + 1)
            a[at:at + rng.randrange(3)] = rng.choice(letters) * rng.randrange(3)
        yield "".join(a), b


def main():
    rng = random.Random(5)
    pairs = CODE + list(random_pairs(rng, 60))
    doc = {
        "f1": [[a, b, normalize(a), f1(a, b)] for a, b in QA],
        "code": [[a, b, ratio(a, b), int(round(100 * ratio(code_line(a), b))) / 100] for a, b in pairs],
    }
    out = pathlib.Path(__file__).with_name("scores.json")
    out.write_text(json.dumps(doc, ensure_ascii=False, indent=0) + "\n")


if __name__ == "__main__":
    main()
