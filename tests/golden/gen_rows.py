#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""rows.jsonl: unusual JSON rows, and how Python's json module reads them.

    gen_rows.py > rows.jsonl

A line is {"row": TEXT, "kind": KIND, "text": TEXT, "lone": N}. kind: "refused"; "not an object";
"missing", "null", "number", ... of the member "text"; for a string "text" has it, with U+FFFD for
each of its "lone" surrogates. Same script, same bytes."""
import json
import random
import sys

sys.set_int_max_str_digits(0)

SEEDS = [
    '{"text": "one"}', '{"id": 3, "text": "two\\u00e9\\n"}', '{"text": null}', '{"text": 5}',
    '{"text": NaN}', '{"a": NaN, "b": Infinity, "c": -Infinity, "text": "x"}',
    '{"n": 1' + "0" * 400 + ', "text": "long integer"}', '{"n": 1e999, "text": "large"}',
    '{"n": -0.0e-12, "m": 0.5E+3, "text": "real"}', '{"text": "a\\u0000b"}',
    '{"text": "\\ud800"}', '{"text": "\\udc00\\ud800x"}', '{"text": "\\ud83d\\ude00"}',
    '{"text": "\\uD83D\\uDE00 \\ud83d"}', '{"text": "\\ud83d\\u0041"}',
    '{"text": "first", "text": "last"}', '{"text": "first", "text": null}',
    '{"te\\u0078t": "escaped key"}', '{"text\\u0000": "other key", "x": 1}',
    '{"text ": 1, "Text": "other", "tex": [], "textt": {}}', '{"text": ["a", "b"]}',
    '{"text": {"text": "inner"}, "b": [{"text": 1}]}', '{"text": "a",}', '{"text": "a"',
    '{"text": "a"} {"text": "b"}', '{"text": "a"}x', '{text: "a"}', "{'text': 'a'}",
    '{"text": "tab\there"}', '{"text": "\\x41"}', '{"text": "\\u12"}', '{"text": "\\u00eG"}',
    '{"text": "\\/\\b\\f\\n\\r\\t\\"\\\\"}', '{"text": "\u2028\u0085\x7f"}', '{"text": 01}',
    '{"text": 1.}', '{"text": .5}', '{"text": +1}', '{"text": -}', '{"text": 1e}',
    '{"text": truee}', '{"text": True}', '{"text": nul}', '[{"text": "a"}]', '"text"', "3", "",
    " ", "{}", " \t\r\n{ } \n", '{"a": [1, 2,], "text": "x"}', '{"a": [], "b": {}, "text": "x"}',
    '{"a": [[[[]]], {"b": [{}]}], "text": "deep"}', '{"a" 1, "text": "x"}', '{"a": 1 "text": "x"}',
    '{"text": "\U0001F600\u00e9"}', '{"": "", "text": ""}', "\ufeff" + '{"text": "mark"}',
    '{"a": ' + "[" * 800 + "]" * 800 + ', "text": "nested"}', '{"text": "/* no */"} // comment',
    '{"text": "a", "b": 0x10}', '{"text": "a", "b": 1_000}', "null", "NaN", "{,}", '{"text"}',
]
ALPHABET = list('{}[]",:\\u0dD8cC/ \t\n\x01nul-+.eE19') + ["\u00e9", "\U0001F600", "text", "null",
                                                             '"text"', "\\ud800", "\\udc00", "NaN"]
KINDS = {type(None): "null", bool: "a boolean", int: "a number", float: "a number",
         list: "an array", dict: "an object", str: "a string"}


def mutated(rng, row):
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(row) + 1)
        what = rng.randrange(3)
        insert = rng.choice(ALPHABET) if what else ""
        row = row[:at] + insert + row[at + (what != 1):]
    return row


def meaning(row):
    """Returns kind, text and number of lone surrogates."""
    try:
        value = json.loads(row)
    except ValueError:
        return "refused", "", 0
    if not isinstance(value, dict):
        return "not an object", "", 0
    if "text" not in value:
        return "missing", "", 0
    text = value["text"]
    if not isinstance(text, str):
        return KINDS[type(text)], "", 0
    lone = [c for c in text if 0xD800 <= ord(c) <= 0xDFFF]
    return "a string", "".join("\ufffd" if c in lone else c for c in text), len(lone)


def rows():
    """Yields the seeds, then mutations: 600 that are refused and 600 that are not."""
    yield from SEEDS
    rng = random.Random(3)
    short = [s for s in SEEDS if len(s) < 100]
    left = {True: 600, False: 600}
    while any(left.values()):
        row = mutated(rng, rng.choice(short))
        refused = meaning(row)[0] == "refused"
        if left[refused]:
            left[refused] -= 1
            yield row


def main():
    for row in rows():
        kind, text, lone = meaning(row)
        print(json.dumps({"row": row, "kind": kind, "text": text, "lone": lone}))


if __name__ == "__main__":
    main()
