#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Pages of sweeps: test_report.py WKVQ [TEST...]. Their structure, and that figures are those of the JSON."""
import html.parser
import json
import math
import shutil
import statistics
import subprocess

import harness
import test_sweep


class Page(html.parser.HTMLParser):
    """Collects text, tags and attributes of a page, and checks that every tag is closed in order."""
    VOID = {"meta", "br", "link", "img"}

    def __init__(self, text):
        super().__init__()
        self.stack, self.words, self.links, self.tables, self.count, self.ids, self.open = [], [], [], [], {}, [], []
        self.names, self.alts = [], []
        self.feed(text)
        self.close()
        assert not self.stack, self.stack
        assert len(self.ids) == len(set(self.ids)), "an id twice"

    def take(self, tag, attrs):
        attrs = dict(attrs)
        self.links += [v for k, v in attrs.items() if k in ("src", "href", "xlink:href") and not v.startswith("#")]
        self.ids += [v for k, v in attrs.items() if k == "id"]
        if attrs.get("role") == "img":
            self.alts.append(attrs["aria-label"])
        return attrs

    def handle_starttag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1
        attrs = self.take(tag, attrs)
        if tag not in self.VOID:
            self.stack.append(tag)
            self.open.append(attrs)
        if tag == "text" and attrs.get("class") == "name":
            self.names.append("")
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.take(tag, attrs)

    def handle_endtag(self, tag):
        assert self.stack and self.stack.pop() == tag, tag
        self.open.pop()

    def handle_data(self, data):
        self.words.append(data)
        if self.stack and self.stack[-1] == "text" and self.open[-1].get("class") == "name":
            self.names[-1] += data
        cell = next((t for t in reversed(self.stack) if t in ("td", "th", "table")), None)
        if cell in ("td", "th"):
            self.tables[-1][-1][-1] += data

    def table(self, *heads):
        """The rows of the table whose heads include these, by name."""
        (table,) = [t for t in self.tables if set(heads) <= set(t[0])]
        return {row[0]: dict(zip(table[0][1:], row[1:])) for row in table[1:]}


def report(f, *more, out="reference", env=None):
    f.reference()
    path = f.path / "r.html"
    done = subprocess.run([f.wkvq, "report", f"{out}/", "-o", "r.html", *more], cwd=f.path,
                          capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    text = path.read_text()
    path.unlink()
    return text, Page(text), done.stderr


def synthetic(f, out, rows, about=None):
    """A directory of results that no run made: rows are changes to the result of the full method."""
    base = f.reference()["full method"]
    (f.path / out).mkdir()
    (f.path / out / "results.jsonl").write_text("".join(json.dumps(base | row) + "\n" for row in rows))
    if about is not None:
        (f.path / out / "sweep.json").write_text(json.dumps(about))


def losses(*nll):
    """The members of a result that follow from its windows' losses."""
    return {"window_nll": list(nll), "ppl": math.exp(statistics.mean(nll)), "windows": len(nll)}


def test_results(f):
    rows = f.reference()
    text, page, _ = report(f)
    assert not page.links, page.links
    assert "<b>&amp;" not in text
    (results,) = [t for t in page.tables if "Settings" in t[0]]
    assert [r[0] for r in results[1:]] == list(rows)
    for shown, row in zip(page.table("Settings").values(), rows.values(), strict=True):
        assert shown["Perplexity"] == f"{row['ppl']:.4f}" and shown["\xb1"] == f"{row['stderr']:.4f}", shown
        assert shown["Weight bits"] == f"{row['weight_bits']:.3f}" and shown["Cache bits"] == f"{row['kv_bits']:.3f}"
        assert shown["MB"] == f"{1e-6 * row['bytes']:.1f}", shown
        memory = row["memory"]["weights"] + row["ctx"] * row["memory"]["cache_token"]
        assert shown["Memory MB"] == f"{1e-6 * memory:.1f}", shown
        assert shown["Cache B/token"] == f"{row['memory']['cache_token']:.0f}", shown
        assert shown["Settings"] == ", ".join(row["set"]), shown
    words = "".join(page.words)
    assert all(row["command"] in words for row in rows.values())


def test_what_was_run(f):
    rows = f.reference()
    _, page, _ = report(f)
    words = " ".join("".join(page.words).split())
    run = rows["plain"]["run"]
    for part in ("model: reference", "text.txt: 8 samples of 64 tokens, 2 epochs", "eval.txt: 4 windows of 64 tokens",
                 f"{run['machine']}, 1 thread, device cpu", f"wkvq {run['version']}", run["finished"][:10],
                 "wkvq sweep -m model --data text.txt -o reference -j1 s.yaml"):
        assert part in words, part
    assert "<title>Mine</title>" in report(f, "--title", "Mine")[0]


def test_no_date_of_today(f):
    """The page is made from records alone, so it is the same on another day."""
    first = report(f)[0]
    row = f.reference()["full method"]
    later = row["run"] | {"finished": "2031-02-03T04:05:06Z"}
    synthetic(f, "later", [{"run": later}])
    assert report(f)[0] == first
    assert "2031-02-03; 1 cell took" in report(f, out="later")[0]


def test_the_finding(f):
    rows = [{"name": "full", "weight_bits": 16, "kv_bits": 16, "bytes": 1000} | losses(2.0, 2.1, 2.2, 2.3),
            {"name": "good", "bytes": 250} | losses(2.1, 2.21, 2.3, 2.41),
            {"name": "equal", "bytes": 250} | losses(2.11, 2.2, 2.32, 2.4),
            {"name": "bad", "bytes": 250} | losses(2.5, 2.62, 2.71, 2.79)]
    synthetic(f, "finding", rows)
    words = " ".join("".join(report(f, out="finding")[1].words).split())
    assert ("Of 3 cells with weights and cache quantized, good has the lowest perplexity, 9.535, against 8.585 in full "
            "precision (+0.1050 \xb1 0.0029 nats per token), in 25\xa0% of its bytes." in
            "".join(report(f, out="finding")[1].words)), words
    assert "No significant difference to it: equal." in words, words
    synthetic(f, "finding2", rows[:2] + rows[3:])
    assert "All others are worse by more than two standard errors." in report(f, out="finding2")[0]


def test_cells_of_other_machines(f):
    """A mark for another processor, device or number of threads than the base's; none where a record is missing."""
    run = f.reference()["full method"]["run"]
    cases = {"base": {}, "same": {"finished": "2031-01-01T00:00:00Z"}, "threads": {"cores": 7}, "device": {"device": "cuda"},
             "machine": {"machine": "abacus"}}
    rows = [{"name": n, "run": run | more} for n, more in cases.items()] + [{"name": "unknown", "run": {}}]
    synthetic(f, "machines", rows)
    _, page, _ = report(f, out="machines")
    marked = [n for n, row in page.table("Settings").items() if row["Perplexity"].endswith(" \u2020")]
    assert marked == ["threads", "device", "machine"] and "as between two seeds" in "".join(page.words), marked
    assert "as between two seeds" not in "".join(report(f)[1].words)


def test_a_failed_verification(f):
    """The finding and the claims are of other cells, and the page says so."""
    bad = {"name": "bad", "verified": False} | losses(1.0, 1.1, 1.2, 1.3)
    rows = [{"name": "worse"} | losses(2.3, 2.4, 2.5, 2.65), {"name": "good"} | losses(2.1, 2.2, 2.3, 2.4)]
    claims = [claim("better", "bad", "good"), claim("than", "good", "bad"), claim("good", "good", "worse")]
    synthetic(f, "faults", [bad, *rows], {"cells": ["bad", "worse", "good"], "claims": claims})
    _, page, _ = report(f, out="faults")
    words = "".join(page.words)
    assert "Of 2 cells with weights and cache quantized, good has the lowest perplexity, 9.488." in words, words[:600]
    assert "Left out of finding and claims, because the verification failed: bad." in words, words[:600]
    assert page.table("Settings")["bad"]["Verified"] == "FAILED"
    table = next(t for t in page.tables if t[0][0] == "Claim")[1:]
    assert [row[1].split(" ", 1)[-1] for row in table] == ["measured", "measured", "held"], table
    # with no other cell of both, the finding is about those that have either
    synthetic(f, "faults2", [bad, rows[0] | {"kv_bits": 16}])
    assert "worse has a perplexity of" in "".join(report(f, out="faults2")[1].words)


def claim(text, better, *than, by="perplexity"):
    return {"claim": text, "better": better, "than": list(than), "by": by, "line": 1}


def test_claims(f):
    """Each verdict, and the mean of two cells, against Python's arithmetic."""
    low, same, high = (2.0, 2.1, 2.2, 2.3), (2.01, 2.09, 2.21, 2.29), (2.4, 2.52, 2.61, 2.69)
    sizes = lambda weights, cache: {"memory": {"weights": weights, "cache_token": cache}, "ctx": 100}
    rows = [{"name": "low"} | losses(*low) | sizes(5e6, 1e3), {"name": "same"} | losses(*same) | sizes(5e6, 1e3),
            {"name": "high"} | losses(*high) | sizes(9e6, 2e4)]
    # 1.9 and 2.2 standard errors above
    rows += [{"name": n} | losses(*(x + by + (0.1 if i % 2 else -0.1) for i, x in enumerate(low)))
             for n, by in (("near", 0.11), ("far", 0.125))]
    claims = [claim("two errors", "low", "far"), claim("less", "low", "near"), claim("holds", "low", "high"),
              claim("fails", "high", "low"), claim("open", "low", "same"),
              claim("nearer", "same", "low", "high"), claim("gone", "low", "nobody"),
              claim("smaller", "low", "high", by="memory"), claim("larger", "high", "same", by="memory"),
              claim("equal", "low", "same", by="memory"), claim("in between", "low", "same", "high", by="memory")]
    synthetic(f, "claims", rows, {"cells": ["low", "same", "high"], "claims": claims})
    _, page, _ = report(f, out="claims")
    table = {r[0]: r[1:] for r in next(t for t in page.tables if t[0][0] == "Claim")[1:]}
    verdict = {name: row[0].split(" ", 1)[-1] if name != "gone" else row[0] for name, row in table.items()}
    assert verdict == {"two errors": "held", "less": "no significant difference", "holds": "held",
                       "fails": "did not hold", "open": "no significant difference", "nearer": "held",
                       "gone": "not measured", "smaller": "held", "larger": "did not hold",
                       "equal": "no significant difference", "in between": "held"}, verdict
    for name, d in (("holds", [a - b for a, b in zip(low, high)]), ("open", [a - b for a, b in zip(low, same)]),
                    ("nearer", [a - (b + c) / 2 for a, b, c in zip(same, low, high)])):
        mean, error = statistics.mean(d), statistics.stdev(d) / 2
        assert table[name][1:3] == [f"{mean:+.5f}", f"{error:.5f}"], (name, table[name], mean, error)
    assert table["smaller"][1] == "-5.9" and table["in between"][1] == f"{1e-6 * -2950000.0:+.1f}", table
    assert ("Of 11 claims, 5 held, 2 did not hold, 3 showed no significant difference and 1 could not be measured." in
            "".join(page.words))


def measured(acc, score, nll, *, other_text=False):
    """The members of a result with a text, two zero-shot sets and two of LongBench; acc and score: {set: figures}."""
    share = lambda x: {"n": len(x), "rows": 90, "chance": 0.5, "acc": statistics.mean(x), "right": x, "right_norm": None,
                       "acc_stderr": statistics.stdev(x) / len(x) ** 0.5, "acc_norm": None, "acc_norm_stderr": None}
    points = lambda x: {"metric": "F1", "n": len(x), "rows": 90, "score": statistics.mean(x), "scores": x,
                        "stderr": statistics.stdev(x) / len(x) ** 0.5}
    named = [("ppl", "PTB", losses(*nll) | {"stderr": 0.1})]
    named += [("zeroshot", n, share(x)) for n, x in acc.items()] + [("longbench", n, points(x)) for n, x in score.items()]
    return {"measures": [{"task": t, "name": n, "identity": {"task": t, "crc32": "1" if other_text and t == "ppl" else "0"}} | m
                         for t, n, m in named]}


def paired(a, b):
    d = [x - y for x, y in zip(a, b, strict=True)]
    return statistics.mean(d), statistics.stdev(d) / len(d) ** 0.5


def test_measures(f):
    """Tables, and claims by every measure: paired over windows and questions, against Python's arithmetic."""
    acc = [{"piqa": [1, 1, 0, 1, 1, 1, 0, 1, 1, 1], "winogrande": [1, 0, 1, 1, 1, 1, 1, 1]},
           {"piqa": [0, 1, 0, 0, 0, 0, 0, 1, 0, 0], "winogrande": [0, 0, 0, 0, 1, 0, 0, 0]}]
    score = [{"qasper": [10.0, 0.0, 30.0], "lcc": [50.0, 20.0]}, {"qasper": [12.0, 1.0, 28.0], "lcc": [49.0, 21.0]}]
    nll = [(2.0, 2.1, 2.2, 2.3), (2.3, 2.42, 2.49, 2.61)]
    rows = [{"name": n} | losses(*nll[i]) | measured(acc[i], score[i], nll[i]) for i, n in enumerate(("good", "bad"))]
    rows += [{"name": "bare"} | losses(*nll[1])]
    rows += [{"name": "other"} | losses(*nll[1]) | measured(acc[1], score[1], nll[1], other_text=True)]
    claims = [claim("all", "good", "bad", by="quality"), claim("none", "good", "bare", by="quality"),
              claim("mean", "good", "good", "bad", by="zeroshot"), claim("worse", "bad", "good", by="zeroshot"),
              claim("changed", "good", "other", by="quality")]
    synthetic(f, "measures", rows, {"cells": [r["name"] for r in rows], "claims": claims})
    _, page, _ = report(f, out="measures")
    table = next(t for t in page.tables if t[0][0] == "Claim")[1:]
    shown = [[c.split(" ", 1)[-1] if c[0] in "\u2713\u2717\u2248" else c for c in row[-4:]] for row in table]
    sets = [[paired(acc[0][n], acc[1][n]) for n in acc[0]], [paired(score[0][n], score[1][n]) for n in score[0]]]
    (zero, zero_error), (long, long_error) = [(sum(m for m, _ in s) / 2, math.hypot(*(e for _, e in s)) / 2) for s in sets]
    text = paired(*nll)
    units = ["nats per token", "nats per token, PTB", "points of zero-shot accuracy", "points of LongBench"]
    row = lambda verdict, mean, error, digits, unit: [verdict, f"{mean:+.{digits}f}", f"{error:.{digits}f}", unit]
    held = [row("held", *text, 5, units[0]), row("held", *text, 5, units[1])]
    tasks = [row("held", 100 * zero, 100 * zero_error, 2, units[2]),
             row("no significant difference", long, long_error, 2, units[3])]
    assert shown[:4] == held + tasks, shown[:4]
    nothing = [["not measured", "\u2013", "\u2013", u] for u in units]
    assert shown[4:8] == held[:1] + nothing[1:], shown[4:8]
    assert shown[8] == row("held", 50 * zero, 50 * zero_error, 2, units[2]), shown[8]
    assert shown[9] == row("did not hold", -100 * zero, 100 * zero_error, 2, units[2]), shown[9]
    assert shown[10:] == [held[0], nothing[1], *tasks], "another text cannot be paired"
    words = " ".join("".join(page.words).split())
    assert ("Of 5 claims, by perplexity 3 held; by perplexity of PTB 1 held and 2 could not be measured; by zero-shot "
            "accuracy 3 held, 1 did not hold and 1 could not be measured; by LongBench 2 showed no significant "
            "difference and 1 could not be measured.") in words, words[:600]
    cells = page.table("WinoGrande")
    assert cells["good"]["PIQA"] == "80.00 \xb1 13.33" and cells["bare"]["PIQA"] == "\u2013", cells
    assert cells["good"]["Average"].startswith(f"{50 * (0.8 + 7 / 8):.2f} \xb1"), cells
    texts = page.table("PTB")
    assert texts["other"]["PTB"].endswith(" *") and not texts["bad"]["PTB"].endswith("*"), texts
    assert "A figure with * is of another text" in words
    assert "With 18 questions, a difference is significant from about" in words
    assert "better than guessing on" not in words
    assert "guessing on piqa (guessing: 50.0 %), winogrande" in " ".join(
        "".join(report(f, "--base", "bad", out="measures")[1].words).split())


def test_one_set(f):
    """Two cells on one zero-shot set: McNemar's exact test, by binomial coefficients here. By the standard error,
    61 answers to 40 would differ significantly."""
    base = [1] * 40 + [0] * 61
    other = [1 - x for x in base]
    acc = {"base": base, "five": base[:-5] + other[-5:], "eight": other[:1] + base[1:-8] + other[-8:],
           "same": other[:5] + base[5:-5] + other[-5:], "other": other}
    rows = [{"name": n} | losses(2.0, 2.1) | measured({"piqa": x}, {}, (2.0, 2.1)) for n, x in acc.items()]
    cases = (("five", ["base"], "no significant difference", "0.0625"), ("eight", ["base"], "held", "0.0391"),
             ("base", ["eight"], "did not hold", "0.0391"), ("same", ["base"], "no significant difference", "1.0000"),
             ("other", ["base"], "no significant difference", "0.0460"),
             ("five", ["base", "base"], "held", None))  # the mean of two is judged by its standard error
    synthetic(f, "one", rows, {"cells": list(acc), "claims": [claim(f"c{i}", c[0], *c[1], by="zeroshot")
                                                              for i, c in enumerate(cases)]})
    _, page, _ = report(f, out="one")
    assert "p must be at most 0.0455," in " ".join("".join(page.words).split())
    table = next(t for t in page.tables if t[0][0] == "Claim")[1:]
    for (better, than, verdict, p), row in zip(cases, table, strict=True):
        mean, error = paired(acc[better], acc[than[0]])
        unit = "points of zero-shot accuracy" + (f", exact p {p}" if p else "")
        assert row[1].split(" ", 1)[1] == verdict, row
        assert row[2:] == [f"{100 * mean:+.2f}", f"{100 * error:.2f}", unit], row
        assert (abs(mean) > 2 * error) == (verdict != "no significant difference") or better in ("five", "other"), row


def test_order_of_the_file(f):
    """Cells that ran side by side are listed as in the sweep's file, and the first is the base."""
    names = ["c", "a", "b"]
    synthetic(f, "order", [{"name": n} for n in ("b", "c", "a")], {"title": "the order", "cells": names})
    text, page, _ = report(f, out="order")
    assert list(page.table("Settings")) == names and "Difference to c" in "".join(page.words)
    assert "<title>model: the order</title>" in text


def test_another_checkpoint(f):
    """Cells of different checkpoints are not compared, in a list whose record has no hashes."""
    base = f.reference()["full method"]["identity"]
    other = {"identity": base | {"checkpoint": {"crc32": "0", "bytes": 1}}}
    rows = [{"name": "full", "weight_bits": 16, "kv_bits": 16} | losses(2.0, 2.1) | measured({"piqa": [1, 0]}, {}, (2, 2)) | other,
            {"name": "low"} | losses(2.1, 2.2) | measured({"piqa": [0, 1]}, {}, (2, 2))]
    claims = [claim(by, "low", "full", by=by) for by in ("perplexity", "zeroshot", "memory")]
    synthetic(f, "models", rows, {"cells": ["full", "low"], "claims": claims})
    _, page, _ = report(f, out="models")
    words = "".join(page.words)
    assert "low has a perplexity of 8.585." in words and "in full precision" not in words, words[:400]
    table = next(t for t in page.tables if t[0][0] == "Claim")[1:]
    assert [row[1:3] for row in table] == [["not measured", "\u2013"]] * 3, table
    assert page.table("Verdict", "nats")["low"]["nats"] == "\u2013"


def test_differences_are_paired(f):
    rows = f.reference()
    for base in ("full method", "plain"):
        _, page, _ = report(f, "--base", base)
        table = next(t for t in page.tables if "nats" in t[0])
        assert [r[0] for r in table[1:]] == [n for n in rows if n != base]
        for name, nats, error, *_ in table[1:]:
            d = [a - b for a, b in zip(rows[name]["window_nll"], rows[base]["window_nll"])]
            assert abs(float(nats) - statistics.mean(d)) <= 1e-5, (name, nats, d)
            assert abs(float(error) - statistics.stdev(d) / len(d) ** 0.5) <= 1e-5, (name, error, d)


def test_pictures(f):
    if not shutil.which("gnuplot"):
        print("  no gnuplot: pictures are not tested")
    else:
        text, page, _ = report(f)
        # weights, cache, differences, K and V, each for wide and narrow screens; and the losses of one cell
        assert page.count["svg"] == len(page.alts) == 11, page.count
        assert page.count["figure"] == page.count["figcaption"] == 6 and all(len(a) > 40 for a in page.alts)
        assert "gnuplot was not installed" not in text and "GNUPLOT" not in text
        for name in f.reference():
            shown = name if len(name) <= 40 else name[:39] + "\u2026"
            assert page.names.count(shown) >= 4, (name, page.names)
        first = f.reference()["full method"]
        errors = [f"{1 - x:.2e}" for x in first["k_cosine"]]
        (keys, values) = [t for t in page.tables if t[0] == ["Layer"]]
        assert [row[1] for row in keys[2:]] == errors and keys[1][1] == "full method", keys
        assert [row[1] for row in values[2:]] == [f"{1 - x:.2e}" for x in first["v_cosine"]]
    text, page, said = report(f, env={"PATH": "/nowhere"})
    assert "svg" not in page.count and "gnuplot was not installed" in text and "gnuplot-nox" in said


def test_every_name_of_many(f):
    """All of 20 cells are named in each picture, although many have nearly the same figures."""
    if not shutil.which("gnuplot"):
        print("  no gnuplot: pictures are not tested")
        return
    rows = [{"name": f"a cell with a name {i:02}", "bytes": 1000000 + 9000 * (i % 5),
             "memory": {"weights": 9, "cache_token": 300 + 5 * (i % 4)}} | losses(2 + 0.002 * i, 2.1, 2.2, 2.3 + 0.001 * i)
            for i in range(20)]
    synthetic(f, "twenty", rows)
    _, page, _ = report(f, out="twenty")
    for row in rows:
        # weights and cache, both twice; the forest of differences has all but the base
        assert page.names.count(row["name"]) >= 4 + 2 * (row is not rows[0]), (row["name"], page.names.count(row["name"]))


def test_many_cells(f):
    """Checks the number of pictures of losses, and the note about cells without one."""
    if not shutil.which("gnuplot"):
        print("  no gnuplot: pictures are not tested")
        return
    synthetic(f, "crowd", [{"name": f"cell {i}"} for i in range(50)])
    text, _, _ = report(f, out="crowd")
    assert "the first 48 cells that learned; results.jsonl has the losses of 2 more" in text
    assert "<figcaption>cell 47<" in text and "<figcaption>cell 48<" not in text


def test_errors_that_are_missing(f):
    """Verification may read fewer tokens than a window keeps, and then no layer of the cache has an error."""
    missing = {"name": "wide window", "k_cosine": [None] * 3, "v_cosine": [None] * 3}
    partly = {"name": "one layer", "k_cosine": [None, 0.5, None], "v_cosine": [None, 0.5, None]}
    damaged = {"name": "one loss", "blocks": [{"start": 1, "best": None, "epochs": [0.5]}]}
    synthetic(f, "missing", [missing])
    synthetic(f, "some", [{"name": "all"}, missing, partly, damaged])
    text, page, said = report(f, out="missing")
    assert "gnuplot failed" not in said and "Error of the cache by layer" not in text, said
    text, page, _ = report(f, out="some")
    (keys, values) = [t for t in page.tables if t[0] == ["Layer"]]
    assert keys[1][1:] == values[1][1:] == ["all", "one layer", "one loss"], keys
    assert [row[2] for row in keys[2:]] == ["\u2013", "5.00e-01", "\u2013"], keys
    assert not any("nan" in cell for t in page.tables for row in t for cell in row), page.tables


def test_a_window_without_errors(f):
    """Such a sweep ends as others do, with its table and its page."""
    (f.path / "window.yaml").write_text(test_sweep.SWEEP.replace("name: full method", "name: window, set: {kv.window: 300, "
                                                      "weights.method: rtn, kv.method: token}"))
    done = f.call(f.command("window", file="window.yaml"))
    assert "gnuplot failed" not in done.stderr and "\nwindow " in done.stdout, done
    rows = {r["name"]: r for r in f.rows("window")}
    assert rows["window"]["k_cosine"] == [None] * 3, rows["window"]
    text = (f.path / "window/report.html").read_text()
    assert "<td class=\"set\">window</td>" not in text and "nan" not in "".join(Page(text).words).split()


def test_a_gnuplot_that_fails(f):
    """It costs the pictures, not the page or the sweep."""
    (f.path / "bin").mkdir()
    fake = f.path / "bin/gnuplot"
    fake.write_text('#!/bin/sh\n[ "$1" = --version ]\n')
    fake.chmod(0o755)
    env = {"PATH": f"{f.path / 'bin'}:/usr/bin:/bin"}
    text, page, said = report(f, env=env)
    assert "svg" not in page.count and page.count["figure"] == 6 and "No picture: gnuplot failed" in text, page.count
    assert "gnuplot failed, so the page lacks a picture" in said and page.table("Settings"), said
    shutil.copytree(f.path / "reference", f.path / "copied")
    done = f.call(f.command("copied"), env=env)
    assert "full method" in done.stdout, done


def test_a_page_of_the_sweep(f):
    f.reference()
    text = (f.path / "reference/report.html").read_text()
    assert text == report(f)[0]


def test_an_older_list(f):
    """Results without records, as earlier versions wrote them, still make a page."""
    row = {k: v for k, v in f.reference()["full method"].items() if k not in ("run", "memory")}
    (f.path / "older").mkdir()
    (f.path / "older/results.jsonl").write_text(json.dumps(row) + "\n")
    text, page, _ = report(f, out="older")
    assert "<title>older</title>" in text and page.table("Settings")["full method"]["Cache B/token"] == "\u2013"


def test_a_damaged_list(f):
    f.reference()
    (f.path / "damaged").mkdir()
    for text, wanted in (('{"name": "a"}\n', "not a cell's result"), ("{", "line 1"),
                         ('{"name": "a", "identity": {}, "command": "c", "ppl": "x"}\n', "ppl")):
        (f.path / "damaged" / "results.jsonl").write_text(text)
        done = f.run("report", "damaged", want=2)
        assert wanted in done.stderr, done.stderr
    synthetic(f, "about", [{}], [])
    done = f.run("report", "about", want=2)
    assert "sweep.json: holds no object" in done.stderr, done.stderr


if __name__ == "__main__":
    harness.main(globals(), test_sweep.Fixture)
