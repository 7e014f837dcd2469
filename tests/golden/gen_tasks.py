#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""How EleutherAI's lm-evaluation-harness words and answers questions, into tests/golden/tasks.json.

    gen_tasks.py LM_EVAL [DATA]     needs Jinja2 and PyYAML

LM_EVAL: the unpacked package (lm_eval 0.4.13), whose YAML files and preprocessing make the texts. DATA: a folder with
the data sets' files (DATA_FILES below). Of them only checksums and lengths of some questions are kept. Without DATA,
those that are there stay.

A question's crc32 is that of `wkvq eval -o` where a token is a byte: of each choice the number of tokens and of the
context's tokens, and the ids; then the right choice; all as 32-bit little-endian numbers."""
import gzip
import importlib.util
import json
import pathlib
import struct
import sys
import types
import zlib

import jinja2
import yaml

OUT = pathlib.Path(__file__).parent / "tasks.json"
LIMIT = 40  # questions of a file
DATA_FILES = {"PIQA/validation.hf.jsonl": "piqa", "ARC-Challenge/test.hf.jsonl": "arc_challenge",
              "HellaSwag/validation.hf.jsonl.gz": "hellaswag", "WinoGrande/validation.hf.jsonl": "winogrande"}
# Questions of our own in the hub's form: white space at every end, brackets, other alphabets, labels as numbers and as text.
ROWS = {
    "piqa": [{"goal": "Boil an egg ", "sol1": "use water", "sol2": " use \u00e9", "label": 1},
             {"goal": "\tCut\n", "sol1": "a ", "sol2": "b\u00a0c", "label": 0}],
    "arc_easy": [{"question": "Why  is\nit so?", "choices": {"text": ["x", "yy ", "\u96e8"], "label": ["1", "2", "3"]},
                  "answerKey": "3"}],
    "arc_challenge": [{"question": "\u00bfQu\u00e9? ", "choices": {"text": ["q", " rs"], "label": ["A", "B"]},
                       "answerKey": "A"}],
    "hellaswag": [{"activity_label": "Cooking", "ctx_a": "A man [step] stirs.", "ctx_b": "the Man \u00c9TAIT",
                   "endings": ["eats [title] well.", "[x]  runs", "  a   b ", "\u00e9 [y] z [z"], "label": "3"},
                  {"activity_label": " Run ", "ctx_a": "Go [title] on [header]\u2003", "ctx_b": "",
                   "endings": [" a", "b [c\nd] e", "[title] f", "\u96e8  "], "label": "0"},
                  {"activity_label": "Sit", "ctx_a": " [substeps] He", "ctx_b": "\u01c6UNGLA [title] X",
                   "endings": ["[a][b]", "c [title]", "d", "e"], "label": "2"}],
    "winogrande": [{"sentence": "Ann met Bo as _ was late.", "option1": "Ann", "option2": "Bo ", "answer": "2"},
                   {"sentence": "_  \u2014 or _ is \u00e9.", "option1": "\u00c5", "option2": " the b", "answer": "1"}],
}


class Loader(yaml.SafeLoader):
    """Reads `!function file.name` as text."""


Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def module(path):
    sys.modules.setdefault("datasets", types.SimpleNamespace(Dataset=None))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def template(text):
    return jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True).from_string(text)


class Rows(list):
    def map(self, change):
        return Rows({**row, **change(row)} for row in self)


class Harness:
    def __init__(self, folder):
        tasks = pathlib.Path(folder) / "tasks"
        text = {name: yaml.load((tasks / name).read_text(), Loader)["doc_to_text"]
                for name in ("piqa/piqa.yaml", "arc/arc_easy.yaml", "hellaswag/hellaswag.yaml")}
        self.text = {name.split("/")[0]: template(t) for name, t in text.items()}
        self.hellaswag = module(tasks / "hellaswag" / "utils.py")
        self.winogrande = module(tasks / "winogrande" / "preprocess_winogrande.py")

    def questions(self, name, rows):
        """(right choice, [(context, continuation)], lengths of the choices or None)"""
        kind = name.split("_")[0]
        if kind == "hellaswag":
            rows = self.hellaswag.process_docs(Rows(rows))
        for row in rows:
            if kind == "winogrande":
                target = self.winogrande.doc_to_target(row)
                contexts = self.winogrande.doc_to_choice(row)
                yield self.winogrande.doc_to_text(row), [(c, " " + target) for c in contexts], None
                continue
            choices = {"piqa": lambda r: [r["sol1"], r["sol2"]], "arc": lambda r: r["choices"]["text"],
                       "hellaswag": lambda r: r["choices"]}[kind](row)
            gold = row["choices"]["label"].index(row["answerKey"]) if kind == "arc" else int(row["label"])
            context = self.text[kind].render(**row)
            yield gold, [(context, " " + c) for c in choices], [len(c) for c in choices]


def crc(choices, gold):
    number = struct.Struct("<i").pack
    data = b""
    for context, continuation in choices:
        whole = (context + continuation).encode()
        # As TemplateLM._encode_pair() does: white space at the context's end belongs to the continuation.
        data += number(len(whole)) + number(len(context.rstrip().encode())) + b"".join(map(number, whole))
    return f"{zlib.crc32(data + number(gold)):08x}"


def golden(harness, name, rows):
    out = [(crc(choices, gold), chars) for gold, choices, chars in harness.questions(name, rows)]
    return {"crc32": [c for c, _ in out], "chars": [chars for _, chars in out] if out[0][1] else None}


def read(path):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def main():
    harness = Harness(sys.argv[1])
    data = json.loads(OUT.read_text())["data"] if OUT.exists() else {}
    if len(sys.argv) > 2:
        for file, name in DATA_FILES.items():
            rows = read(pathlib.Path(sys.argv[2]) / file)
            some = [rows[i * len(rows) // LIMIT] for i in range(LIMIT)]
            data[file] = {"set": name, "rows": len(rows), **golden(harness, name, some)}
    own = {name: {"rows": rows, **golden(harness, name, rows)} for name, rows in ROWS.items()}
    OUT.write_text(json.dumps({"limit": LIMIT, "own": own, "data": data}, indent=1) + "\n")


if __name__ == "__main__":
    main()
