#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""`wkvq eval` on a tiny model, everything but plain perplexity: test_tasks.py WKVQ.

The scored texts and their scores are compared with texts written out here and with a forward pass
in plain Python; the packed runtime with the simulation; LongBench's answers with `wkvq generate`."""
import json
import math
import pathlib
import random
import shutil
import struct
import sys
import zlib

sys.path[:0] = [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parents[1] / "golden")]
import gen_scores
import harness
import tiny
import tiny_forward

# name: (file, lines, [(gold, [(context, continuation, characters of the choice)])])
ARC = "Question: Why?\nAnswer:"
SETS = {
    "piqa": ("piqa.jsonl",
             [{"goal": "Boil an egg", "sol1": "use water", "sol2": "use \u00e9", "label": 1},
              {"goal": "Cut", "sol1": "a", "sol2": "bc", "label": "0"}],
             [(1, [("Question: Boil an egg\nAnswer:", " use water", 9),
                   ("Question: Boil an egg\nAnswer:", " use \u00e9", 5)]),
              (0, [("Question: Cut\nAnswer:", " a", 1), ("Question: Cut\nAnswer:", " bc", 2)])]),
    "arc": ("arc.jsonl",
            [{"id": "1", "question": {"stem": "Why?", "choices": [{"text": "x", "label": "A"},
                                                                  {"text": "yy", "label": "B"},
                                                                  {"text": "zz z", "label": "C"}]},
              "answerKey": "C"},
             {"id": "2", "question": "Why?", "choices": {"text": ["q", "rs"], "label": ["1", "2"]},
              "answerKey": "1"}],
            [(2, [(ARC, " x", 1), (ARC, " yy", 2), (ARC, " zz z", 4)]),
             (0, [(ARC, " q", 1), (ARC, " rs", 2)])]),
    "hellaswag": ("hellaswag.jsonl",
                  [{"activity_label": "Cooking", "ctx_a": "A man [step] stirs.", "ctx_b": "the Man",
                    "endings": ["eats [title] well.", "[x]  runs"], "label": "1"},
                   {"activity_label": "Run", "ctx_a": "Go [title] on", "endings": [" a", "b [c"],
                    "label": 0}],
                  [(1, [("Cooking: A man stirs. The man", " eats. well.", 11),
                        ("Cooking: A man stirs. The man", "  runs", 5)]),
                   (0, [("Run: Go. on", " a", 1), ("Run: Go. on", " b [c", 4)])]),
    "winogrande": ("winogrande.jsonl",
                   [{"sentence": "Ann met Bo as _ was late.", "option1": "Ann", "option2": "Bo ",
                     "answer": "2"}],
                   [(1, [("Ann met Bo as Ann", " was late.", 3),
                         ("Ann met Bo as Bo", "  was late.", 3)])]),
}


def add_bos(folder, name):
    """A copy of the model whose tokenizer puts BOS in front."""
    shutil.copytree(folder / "model", folder / name)
    tokenizer = tiny.tokenizer()
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                                                 {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [256], "tokens": ["<s>"]}}}
    (folder / name / "tokenizer.json").write_text(json.dumps(tokenizer))


class Fixture(harness.Bench):
    def __init__(self, wkvq, folder):
        super().__init__(wkvq, folder)
        tiny.make_model(self.path / "model")
        tiny.make_text(self.path / "text.txt", 40)
        self.reference = tiny_forward.Tiny(self.path / "model")
        for name, lines, _ in SETS.values():
            text = "\n".join(json.dumps(line) for line in lines) + "\n\n"
            (self.path / name).write_text(text)

    def evaluate(self, model, *args, files=None):
        """Returns the result, and its line for each question."""
        (self.path / "lines.jsonl").unlink(missing_ok=True)
        files = files or [name for name, _, _ in SETS.values()]
        data = [w for f in files for w in ("--data", f)]
        out = self.run("eval", model, "--task", "zeroshot", *data, "--ctx", "200", "--json", "-q",
                       "-o", "lines.jsonl", *args)
        rows = [json.loads(line) for line in (self.path / "lines.jsonl").read_text().splitlines()]
        return json.loads(out.stdout), rows

    def packed(self, window):
        """Makes an artifact whose cache has such a window, unless it is there. Returns its name."""
        out = "packed" + window
        if not (self.path / out).exists():
            self.run("convert", "model", "-o", out, "-q", "--set", "weights.group_size=8", "--set",
                     "kv.group_size=8", "--set", f"kv.window={window}", "--set", "kv.sink=2")
        return out

    def likelihoods(self, choices, front=()):
        for context, continuation, _ in choices:
            a, b = list(context.encode()), list(continuation.encode())
            yield self.reference.log_likelihood([*front, *a, *b], len(front) + len(a))


def near(got, want, bound, what):
    if not abs(got - want) <= bound:
        raise AssertionError(f"{what}: {got}, want {want}")


def best(scores):
    return max(range(len(scores)), key=lambda i: (scores[i], -i))


def share(hits):
    p = sum(hits) / len(hits)
    return p, math.sqrt(p * (1 - p) / (len(hits) - 1)) if len(hits) > 1 else None


def test_scores(f):
    """Likelihoods, lengths and accuracies in full precision."""
    result, rows = f.evaluate("model")
    rows = iter(rows)
    for got, (name, (_, _, questions)) in zip(result["sets"], SETS.items()):
        plain, norm = [], []
        for gold, choices in questions:
            row = next(rows)
            want = list(f.likelihoods(choices))
            chars = [c for _, _, c in choices]
            assert row["set"] == name and row["gold"] == gold, row
            assert row["chars"] == chars, row
            assert row["tokens"] == [len(c.encode()) for _, c, _ in choices], row
            for have, w in zip(row["ll"], want, strict=True):
                near(have, w, 1e-4, f"{name}, likelihood")
            plain.append(best(want) == gold)
            norm.append(best([w / n for w, n in zip(want, chars)]) == gold)
        assert got["set"] == name and got["n"] == len(questions), got
        for key, hits in (("acc", plain), ("acc_norm", norm)):
            if name == "winogrande" and key == "acc_norm":
                assert got[key] is None, got
                continue
            p, error = share(hits)
            near(got[key], p, 1e-8, f"{name}, {key}")
            if error is not None:
                near(got[key + "_stderr"], error, 1e-8, f"{name}, {key}_stderr")


def test_bos(f):
    """BOS as the tokenizer's template has it; --bos never and always overrule it."""
    name, _, questions = SETS["piqa"]
    for model, template in (("model", False), ("bos", True)):
        if template:
            add_bos(f.path, model)
        for rule, front in (("auto", template), ("never", False)) + (("always", True),) * template:
            result, rows = f.evaluate(model, "--bos", rule, files=[name])
            for have, want in zip(rows[0]["ll"], f.likelihoods(questions[0][1], [256] * front)):
                near(have, want, 1e-4, f"{model}, BOS {rule}")
            assert result["bos"] == rule and result["bos_in_text"] == front, result
            said = f.run("eval", model, "--task", "zeroshot", "--data", name, "--ctx", "64", "-q", "--bos", rule).stdout
            assert ("chunk 1, BOS in front" if front else "chunk 1, no BOS") in said, said


def test_cut(f):
    """A text longer than --ctx loses its beginning."""
    name, _, questions = SETS["piqa"]
    _, rows = f.evaluate("model", "--ctx", "16", files=[name])
    context, continuation, _ = questions[0][1][0]
    ids = list((context + continuation).encode())[-16:]
    want = f.reference.log_likelihood(ids, 16 - len(continuation))
    near(rows[0]["ll"][0], want, 1e-4, "cut")


def test_packed(f):
    """The packed runtime computes shared beginnings once, and agrees with the simulation."""
    for window in ("1", "9"):
        out = f.packed(window)
        _, simulated = f.evaluate(out, "--chunk", "1")
        _, packed = f.evaluate(out, "--chunk", "1", "--decode")
        _, whole = f.evaluate(out, "--decode")
        _, full = f.evaluate(out, "--decode", "--kv-bits", "16")
        differs = False
        for a, b, c, d in zip(simulated, packed, whole, full, strict=True):
            for w, x, y, z in zip(a["ll"], b["ll"], c["ll"], d["ll"], strict=True):
                near(x, w, 2e-3, "packed runtime against simulation")
                near(y, z, 1, "context as one chunk")
                differs |= abs(x - z) > 1e-3
        assert differs, "a quantized cache does not show"


def test_chunks(f):
    """The last line says how the context and what is scored are read; a chunk of --ctx is one prefill."""
    out, name = f.packed("1"), SETS["piqa"][0]
    whole, rows = f.evaluate(out, "--decode", files=[name])
    for chunk in ("200", "1000"):
        result, same = f.evaluate(out, "--decode", "--chunk", chunk, files=[name])
        assert result["chunk"] == whole["chunk"] == 0 and same == rows, (result, same)
    for more, said in ((["--decode"], "prefill, then chunk 1"), (["--decode", "--chunk", "7"],
                       "context in chunks of 7, then chunk 1"), (["--decode", "--chunk", "1"], "chunk 1"),
                       (["--chunk", "7"], "chunk 7"), (["--decode", "--chunk", "64"], "prefill, then chunk 1"),
                       (["--chunk", "64"], "chunk 64")):
        last = f.run("eval", out, "--task", "zeroshot", "--data", name, "--ctx", "64", "-q", *more).stdout.splitlines()[-1]
        assert last.endswith(f", {said}, no BOS"), (more, last)
    _, short = f.evaluate(out, "--decode", "--chunk", "7", files=[name])
    assert [row["ll"] for row in short] != [row["ll"] for row in rows], "the chunk does not matter"


def test_contexts_of_a_question(f):
    """Contexts may differ in length, and one may be the beginning of another, in either order."""
    f.run("convert", "model", "-o", "plain", "-q", "--set", "weights.group_size=8", "--set", "kv.group_size=8")
    options = [("red house", "red"), ("red", "red house"), ("a", "bcd")]
    write_rows(f.path / "contexts.jsonl", [{"sentence": "He saw the _ twice.", "option1": a, "option2": b, "answer": "1"}
                                           for a, b in options])
    args = ["--kv-bits", "16", "--chunk", "1"]
    _, simulated = f.evaluate("plain", *args, files=["contexts.jsonl"])
    _, packed = f.evaluate("plain", "--decode", *args, files=["contexts.jsonl"])
    for a, b in zip(simulated, packed, strict=True):
        for x, y in zip(a["ll"], b["ll"], strict=True):
            near(x, y, 1e-3, "packed runtime against simulation")
    near(simulated[0]["ll"][1], simulated[1]["ll"][0], 1e-3, "the other order")


def piqa_lines(n, seed=1, label=True):
    """Questions of very different lengths."""
    draw = random.Random(seed)
    rows = []
    for i in range(n):
        word = "".join(draw.choice("abcdefgh ") for _ in range(draw.choice([2, 9, 30, 80])))
        rows.append({"goal": f"Do {i} {word}", "sol1": word[:7] + "x", "sol2": word + " y"})
        if label:
            rows[-1]["label"] = draw.randrange(2)
    return rows


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_limit(f):
    """Questions are taken evenly from the whole file, and the result says how many."""
    rows = piqa_lines(10)
    write_rows(f.path / "ten.jsonl", rows)
    _, whole = f.evaluate("model", files=["ten.jsonl"])
    for limit, taken in ((1, [0]), (3, [0, 3, 6]), (4, [0, 2, 5, 7]), (10, range(10)), (11, range(10))):
        result, some = f.evaluate("model", "--limit", str(limit), files=["ten.jsonl"])
        assert [row["question"] for row in some] == list(taken), (limit, some)
        assert result["sets"][0]["n"] == len(taken) and result["sets"][0]["rows"] == 10, result
        for row in some:
            for x, y in zip(row["ll"], whole[row["question"]]["ll"], strict=True):
                near(x, y, 1e-4, "one of some")
    said = f.run("eval", "model", "--task", "zeroshot", "--data", "ten.jsonl", "--limit", "4", "--ctx", "200", "-q").stdout
    assert "4 of 10 questions" in said, said
    said = f.run("eval", "model", "--task", "zeroshot", "--data", "ten.jsonl", "--limit", "1", "--ctx", "200", "-q").stdout
    assert "1 of 10 questions" in said, said
    write_rows(f.path / "one.jsonl", rows[:1])
    said = f.run("eval", "model", "--task", "zeroshot", "--data", "one.jsonl", "--ctx", "200", "-q").stdout
    assert "1 question " in said, said
    result, rows = f.evaluate("model", "--limit", "1")
    assert [s["n"] for s in result["sets"]] == [1, 1, 1, 1] and len(rows) == 4


def test_lengths(f):
    """Long and short questions in one file: every likelihood is the one of its own text."""
    rows = piqa_lines(400)
    write_rows(f.path / "many.jsonl", rows)
    _, lines = f.evaluate("model", "--ctx", "256", files=["many.jsonl"])
    assert [line["question"] for line in lines] == list(range(400))
    for i in range(0, 400, 23):
        context = f"Question: {rows[i]['goal']}\nAnswer:"
        want = f.likelihoods([(context, " " + rows[i][key], 0) for key in ("sol1", "sol2")])
        for have, w in zip(lines[i]["ll"], want, strict=True):
            near(have, w, 2e-4 * (1 - w / 100), f"question {i}")


def question_crc(choices, gold):
    """What crc32 of a line has to be, where a token is a byte."""
    number = struct.Struct("<i").pack
    data = b""
    for context, continuation, _ in choices:
        a, b = context.encode(), continuation.encode()
        data += number(len(a) + len(b)) + number(len(a)) + b"".join(map(number, a + b))
    return f"{zlib.crc32(data + number(gold)):08x}"


def test_crc(f):
    _, rows = f.evaluate("model")
    want = [question_crc(choices, gold) for _, _, questions in SETS.values() for gold, choices in questions]
    assert [row["crc32"] for row in rows] == want, rows


def test_labels(f):
    """PIQA's labels in a file of their own, with other sets before and behind it."""
    rows = piqa_lines(5)
    write_rows(f.path / "a.jsonl", rows)
    _, want = f.evaluate("model", files=["a.jsonl"])
    write_rows(f.path / "a-bare.jsonl", [{k: v for k, v in row.items() if k != "label"} for row in rows])
    (f.path / "a.lst").write_text("".join(f"{row['label']}\n" for row in rows))
    _, rows = f.evaluate("model", "--labels", "a.lst", files=[SETS["arc"][0], "a-bare.jsonl", SETS["hellaswag"][0]])
    assert [r["gold"] for r in rows[2:7]] == [r["gold"] for r in want], rows
    _, rows = f.evaluate("model", "--labels", "a.lst", "--limit", "2", files=["a-bare.jsonl"])
    assert [r["gold"] for r in rows] == [want[0]["gold"], want[2]["gold"]], rows


def test_arc_names(f):
    """ARC-Easy and ARC-Challenge have the same fields; the file's name tells them apart."""
    text = (f.path / SETS["arc"][0]).read_text()
    (f.path / "ARC-Challenge").mkdir()
    names = {"ARC-Easy-Test.jsonl": "arc_easy", "ARC-Challenge/test.jsonl": "arc_challenge", "arc.jsonl": "arc"}
    for name in names:
        (f.path / name).write_text(text)
    result, _ = f.evaluate("model", files=list(names))
    assert [s["set"] for s in result["sets"]] == list(names.values()), result


def test_average(f):
    """Every set has the same weight; where acc_norm is not defined, acc stands in."""
    result, _ = f.evaluate("model")
    sets, mean = result["sets"], result["average"]
    assert mean["sets"] == 4, mean
    near(mean["acc"], sum(s["acc"] for s in sets) / 4, 1e-8, "acc")
    near(mean["acc_norm"], sum(s["acc"] if s["acc_norm"] is None else s["acc_norm"] for s in sets) / 4, 1e-8,
         "acc_norm")
    assert mean["acc_stderr"] is None, "WinoGrande has one question"
    result, _ = f.evaluate("model", files=["piqa.jsonl", "arc.jsonl"])
    errors = [s["acc_stderr"] for s in result["sets"]]
    near(result["average"]["acc_stderr"], math.hypot(*errors) / 2, 1e-8, "standard error")


def log_softmax(row):
    top = max(row)
    total = top + math.log(sum(math.exp(v - top) for v in row))
    return [v - total for v in row]


def window_means(f, other, ids):
    """Means over one window: both losses, KL(model || other), agreement."""
    nll, nll_other, kl, same = 0, 0, 0, 0
    rows = zip(f.reference.logits(ids[:-1]), other.logits(ids[:-1]), ids[1:])
    for b, a, target in rows:
        pb, pa = log_softmax(b), log_softmax(a)
        nll -= pb[target]
        nll_other -= pa[target]
        kl += sum(math.exp(x) * (x - y) for x, y in zip(pb, pa))
        same += best(pb) == best(pa)
    return [v / (len(ids) - 1) for v in (nll_other, nll, nll_other - nll, kl, same)]


def test_against(f):
    """Two models on the same windows."""
    tiny.make_model(f.path / "other", seed=2)
    other = tiny_forward.Tiny(f.path / "other")
    ids = list((f.path / "text.txt").read_bytes())
    want = [window_means(f, other, ids[i:i + 30]) for i in range(0, 120, 30)]
    r = json.loads(f.run("eval", "other", "--data", "text.txt", "--ctx", "30", "--windows", "4",
                         "--against", "model", "--json", "-q").stdout)
    for i, got in enumerate((r["model"]["nll"], r["against"]["nll"], r["difference"], r["kl"],
                             r["top1"])):
        column = [row[i] for row in want]
        mean = sum(column) / 4
        if i < 2:
            near(got, mean, 1e-5, "loss")
        else:
            error = math.sqrt(sum((v - mean) ** 2 for v in column) / 3 / 4)
            near(got["mean"], mean, 1e-5, "estimate")
            near(got["stderr"], error, 1e-5, "standard error")
    assert r["windows"] == 4 and r["tokens"] == 4 * 29, r


def test_second_half(f):
    """Only predictions at positions ctx/2 to ctx - 2 count: simulated, packed, and in a comparison."""
    ids = list((f.path / "text.txt").read_bytes())
    for ctx in (30, 31):
        first = ctx // 2
        losses = []
        for start in (0, ctx):
            window = ids[start:start + ctx]
            rows = f.reference.logits(window[:-1])
            losses.append([-log_softmax(row)[t] for row, t in zip(rows, window[1:])])
        want = [sum(row[first:]) / (ctx - 1 - first) for row in losses]
        args = ["--data", "text.txt", "--ctx", str(ctx), "--windows", "2", "--json", "-q"]
        r = json.loads(f.run("eval", "model", "--score", "second-half", *args).stdout)
        assert r["score"] == "second-half" and r["tokens"] == 2 * (ctx - 1 - first), r
        near(r["nll"], sum(want) / 2, 1e-5, "loss")
        for got, one in zip(r["window_nll"], want, strict=True):
            near(got, one, 1e-5, "loss of a window")
        whole = [json.loads(f.run("eval", f.packed("1"), "--score", "second-half", *more, *args).stdout)
                 for more in (["--decode"], [], ["--against", "model"])]
        near(whole[0]["nll"], whole[1]["nll"], 2e-4, "packed")
        near(whole[2]["model"]["nll"], whole[1]["nll"], 1e-6, "against")
        near(whole[2]["against"]["nll"], r["nll"], 1e-6, "the other")


def test_against_packed(f):
    """The packed runtime compared with full precision agrees with the simulation, for any chunk."""
    args = ["--data", "text.txt", "--ctx", "40", "--windows", "2", "--against", "model", "--json",
            "-q"]
    for chunk in ("1", "7", "40"):
        simulated = json.loads(f.run("eval", f.packed("1"), "--chunk", chunk, *args).stdout)
        packed = json.loads(f.run("eval", f.packed("1"), "--chunk", chunk, "--decode", *args).stdout)
        assert packed["model"]["method"] == "packed runtime", packed
        assert packed["against"]["method"] == "full precision", packed
        assert simulated["kl"]["mean"] > 1e-4, simulated
        for key in ("difference", "kl"):
            near(packed[key]["mean"], simulated[key]["mean"], 2e-4, f"chunk {chunk}, {key}")


def test_short(f):
    """Where nothing of the cache is quantized, a warning says so once; and nowhere else."""
    tiny.make_text(f.path / "short.txt", 60)
    write_rows(f.path / "ten.jsonl", piqa_lines(10))

    def both(out, *args):
        """Standard output and errors, of the artifact and of the same with a cache in full precision."""
        done = [f.run("eval", out, "--json", *args, *more) for more in ([], ["--kv-bits", "16"])]
        assert "quantized" not in done[1].stderr, done[1].stderr
        return done[0].stdout, done[1].stdout, done[0].stderr

    for keys, chunk, lengths in ((["kv.window=20", "kv.sink=3"], 1, range(23, 27)), (["kv.window=3"], 7, range(7, 10)),
                                 (["kv.past_only=false", "kv.sink=5"], 1, range(5, 8)),
                                 (["kv.window=12", "kv.sink=1"], 5, range(13, 18)),
                                 (["kv.method=channel"], 1, range(8, 11))):
        seen, quantized = [], ["--simulate", "rtn", *harness.words(["weights.group_size=8", "kv.group_size=8", *keys])]
        for ctx in lengths:
            a, b, said = both("model", *quantized, "--data", "short.txt", "--windows", "2", "--ctx", ctx, "--chunk", chunk)
            same = json.loads(a)["window_nll"] == json.loads(b)["window_nll"]
            assert said.count("quantized") == same, (keys, ctx, said)
            seen.append(same)
        assert True in seen and False in seen, (keys, seen)
    f.run("convert", "model", "-o", "wide", "-q", *harness.words(["weights.group_size=8", "kv.group_size=8", "kv.window=60"]))
    for more in ([], ["--decode"]):
        lines = []
        for bits in ([], ["--kv-bits", "16"]):
            lines.append(f.evaluate("wide", *more, *bits, files=["ten.jsonl"])[1])
        same = sum(all(abs(x - y) < 1e-5 for x, y in zip(a["ll"], b["ll"])) for a, b in zip(*lines, strict=True))
        _, _, said = both("wide", "--task", "zeroshot", "--data", "ten.jsonl", "--ctx", "200", *more)
        assert said.count(f"ten.jsonl: of 10 questions, {same} are shorter than 62 tokens, so nothing") == 1, (same, said)
        assert 1 < same < 10, same


def test_overflow(f):
    """A loss whose exponential is no number is named as such."""
    tiny.make_model(f.path / "loud")
    named = [(n, t, s, struct.pack(f"<{len(d) // 4}f", *[20000 * x for x in struct.unpack(f"<{len(d) // 4}f", d)])
              if n == "model.norm.weight" else d) for n, t, s, d in tiny.model_tensors(tiny.CONFIG, 1)]
    tiny.write_safetensors(f.path / "loud/model.safetensors", named)
    tiny.make_text(f.path / "loud.txt", 60)
    args = ["--data", "loud.txt", "--ctx", "30", "--windows", "2"]
    for more in ([], ["--json"]):
        done = f.run("eval", "loud", *args, *more, want=1)
        assert "whose perplexity is beyond the largest number" in done.stderr, done.stderr
    r = json.loads(f.run("eval", "model", *args, "--against", "loud", "--json").stdout)
    assert r["against"]["ppl"] is None and r["against"]["nll"] > 710, r["against"]
    near(r["model"]["ppl"], math.exp(r["model"]["nll"]), 1e-4 * r["model"]["ppl"], "perplexity")


# data set: (prompt, a question's fields)
LONG = {
    "qasper": ("{{A}} {context} Q: {input} A:", {"context": "Some text.", "input": "What?"}),
    "triviaqa": ("{context}|{input}", {"context": "x" * 30 + "middle" + "y" * 70, "input": "Who?"}),
    "lcc": ("{context}{input}", {"context": "int f(void)\n{\n", "input": ""}),
}
LONG_CTX, LONG_GEN = 60, 9


def long_prompt(name):
    form, fields = LONG[name]
    text = form.replace("{{", "{").replace("}}", "}")
    for key, value in fields.items():
        text = text.replace("{" + key + "}", value)
    half = LONG_CTX // 2
    return (text[:half] + text[-half:], True) if len(text) > LONG_CTX else (text, False)


def test_longbench(f):
    """Prompt, truncation, greedy answer and score."""
    f.run("convert", "model", "-o", "long", "-q", "--set", "weights.group_size=8", "--set",
          "kv.group_size=8")
    (f.path / "prompts.json").write_text(json.dumps({k: v[0] for k, v in LONG.items()}))
    (f.path / "lengths.json").write_text(json.dumps({k: LONG_GEN for k in LONG}))
    files, want = [], []
    for name, (_, fields) in LONG.items():
        prompt, cut = long_prompt(name)
        made = json.loads(f.run("generate", "long", "-p", prompt, "-n", str(LONG_GEN), "--chunk",
                                "1000", "--json", "-q").stdout)["text"]
        # a quarter of the answer, and an unrelated answer
        answers = ["@", made.lstrip("\n")[:max(1, len(made) // 2)]]
        score = {"lcc": lambda a, b: int(round(100 * gen_scores.ratio(gen_scores.code_line(a), b))) / 100}
        first = made.lstrip("\n").split("\n")[0] if name == "triviaqa" else made
        value = max(score.get(name, gen_scores.f1)(first, a) for a in answers)
        row = {"dataset": name, "length": 1, "all_classes": None, "answers": answers, **fields}
        # the second question is hopeless
        nothing = {**row, "answers": ["@"]}
        (f.path / (name + ".jsonl")).write_text(json.dumps(row) + "\n" + json.dumps(nothing) + "\n")
        files += ["--data", name + ".jsonl"]
        want.append((name, made, cut, len(prompt), value))
    r = json.loads(f.run("eval", "long", "--task", "longbench", "--prompts", "prompts.json",
                         "--max-gen", "lengths.json", "--ctx", str(LONG_CTX), "--json", "-q", "-o",
                         "answers.jsonl", *files).stdout)
    rows = [json.loads(line) for line in (f.path / "answers.jsonl").read_text().splitlines()]
    assert any(value > 0 for *_, value in want), "no answer has a score to compare"
    for i, (name, made, cut, length, value) in enumerate(want):
        for row in rows[2 * i:2 * i + 2]:
            assert row["set"] == name and row["pred"] == made, (row, made)
            assert row["cut"] == cut and row["prompt_tokens"] == length, row
        near(rows[2 * i]["score"], value, 1e-8, f"{name}, score")
        low = rows[2 * i + 1]["score"]
        near(r["sets"][i]["score"], 50 * (value + low), 1e-6, f"{name}, mean")
        near(r["sets"][i]["stderr"], 50 * abs(value - low), 1e-6, f"{name}, standard error")
    assert r["method"] == "packed runtime" and r["kv_bits"] == 8, r  # of heads of 8: 4 a code, and a scale and zero point


if __name__ == "__main__":
    harness.main(globals(), Fixture)
