#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The output file (-o) of `wkvq eval`'s tasks: test_task_output.py WKVQ.

It grows line by line, the same command continues it after a kill with the same final bytes, and
another run leaves it alone. LongBench: what the benchmark's eval.py reads, a checkpoint in full
precision, and scores of given answers."""
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

sys.path[:0] = [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parents[1] / "golden")]
import gen_scores
import harness
import test_tasks
import tiny

OUT = "out.jsonl"


class Fixture(test_tasks.Fixture):
    def __init__(self, wkvq, folder):
        super().__init__(wkvq, folder)
        test_tasks.write_rows(self.path / "many.jsonl", test_tasks.piqa_lines(900))
        test_tasks.write_rows(self.path / "few.jsonl", test_tasks.piqa_lines(5, 7))
        tiny.make_model(self.path / "other", seed=2)
        self.run("convert", "model", "-o", "packed", "-q", "--set", "weights.group_size=8", "--set",
                 "kv.group_size=8")

    def zeroshot(self, *more, files=("many.jsonl",), model="model"):
        return [self.wkvq, "eval", model, "--task", "zeroshot", "--ctx", "256", "--json", "-q", "-o", OUT,
                *[w for f in files for w in ("--data", f)], *more]

    def bytes(self, command):
        """The result without times, and the output."""
        done = subprocess.run(command, cwd=self.path, capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr.decode()
        result = json.loads(done.stdout)
        for entry in result["sets"]:
            del entry["seconds"]
        return result, (self.path / OUT).read_bytes()

    def refused(self, command, text, status=2):
        """The command is refused with text, and the output stays as it was."""
        path = self.path / OUT
        before = path.read_bytes() if path.exists() else None
        done = subprocess.run(command, cwd=self.path, capture_output=True, timeout=300)
        assert done.returncode == status, (done.returncode, done.stderr)
        assert text in done.stderr.decode(), done.stderr.decode()
        assert (path.read_bytes() if path.exists() else None) == before, "the output has changed"

    def fresh(self):
        (self.path / OUT).unlink(missing_ok=True)

    def kill_after_a_line(self, command, sig=signal.SIGKILL):
        """Kills the command once its output has a further line; how many lines there are then. SIGINT is answered with
        what is kept."""
        path = self.path / OUT
        before = path.stat().st_size if path.exists() else 0
        with subprocess.Popen(command, cwd=self.path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as p:
            end = time.monotonic() + 120
            while not (path.exists() and path.stat().st_size > before) and p.poll() is None:
                assert time.monotonic() < end, "no line appears"
                time.sleep(0.002)
            p.send_signal(sig)
            _, said = p.communicate()
            assert p.returncode == (130 if sig == signal.SIGINT else -sig), (p.returncode, said)
            kept = f"interrupted; {OUT} has the finished work, and the same command continues from there\n"
            assert said.endswith(kept.encode()) == (sig == signal.SIGINT), said
        return path.read_bytes().count(b"\n")


def test_kill(f):
    """After a kill, the same command ends with the same bytes and result."""
    f.fresh()
    want = f.bytes(f.zeroshot())
    f.fresh()
    lines = f.kill_after_a_line(f.zeroshot())
    assert 0 < lines < 900, lines
    with (f.path / OUT).open("ab") as out:  # a line that the kill cut
        out.write(want[1][:30])
    assert lines < f.kill_after_a_line(f.zeroshot(), signal.SIGINT) < 900
    assert f.bytes(f.zeroshot()) == want
    done = subprocess.run([*f.zeroshot(), "--threads", "1"], cwd=f.path, capture_output=True, timeout=300)
    assert json.loads(done.stdout)["sets"][0]["acc"] == want[0]["sets"][0]["acc"]
    assert (f.path / OUT).read_bytes() == want[1], "a finished output is not computed again"


def test_any_part(f):
    """Whatever part of the lines is there, in whatever order, with a cut line at the end."""
    for more in ([], ["--decode"]):
        command = f.zeroshot(*more, files=["few.jsonl", "arc.jsonl"], model="packed")
        f.fresh()
        want = f.bytes(command)
        lines = want[1].splitlines(keepends=True)
        assert len(lines) == 7
        for part in (lines[:1], lines[2:5], lines[::-1], lines[5:], [lines[3], lines[0][:40]],
                     [lines[6], lines[2][:-1]]):
            (f.path / OUT).write_bytes(b"".join(part))
            assert f.bytes(command) == want, part


def test_other_runs(f):
    """A file of another run, or of another kind, is refused with what differs and not touched."""
    few = ["few.jsonl"]
    f.fresh()
    f.bytes(f.zeroshot(files=few))
    f.refused(f.zeroshot("--chunk", "7", files=few), "chunk 1, bos auto, all questions); this run is")
    f.refused(f.zeroshot("--limit", "2", files=few), "limit 2")
    f.refused(f.zeroshot(files=few, model="other"), "is of another run (model ")
    f.refused(f.zeroshot("--simulate", "rtn", "--set", "weights.group_size=8", files=few), "by simulation")
    f.refused(f.zeroshot(files=["arc.jsonl"]), "has a line for question 0 of piqa, which this run does not ask")
    rows = [json.loads(line) for line in (f.path / "few.jsonl").read_text().splitlines()]
    rows[1]["sol1"] += "!"
    test_tasks.write_rows(f.path / "changed.jsonl", rows)
    f.refused(f.zeroshot(files=["changed.jsonl"]), "has a line for question 1 of piqa")
    for foreign in ("my notes\n", "my notes", "{}\n", '{"set": "piqa"', "[1]\n"):
        (f.path / OUT).write_text(foreign)
        f.refused(f.zeroshot(files=few), "is not a result of this task, so the file is not continued")
    (f.path / OUT).unlink()
    (f.path / OUT).mkdir()
    done = subprocess.run(f.zeroshot(files=few), cwd=f.path, capture_output=True, timeout=300)
    assert done.returncode == 2 and b"directory" in done.stderr, done.stderr
    (f.path / OUT).rmdir()


def test_other_caches(f):
    """The caches of all engines are W4KV4, but the answers of one are not those of another."""
    few, keys = ["few.jsonl"], ("--set", "weights.group_size=8")
    tiny.make_model(f.path / "wide", head_dim=64, num_hidden_layers=2)
    f.run("convert", "wide", "-o", "wide-packed", "-q", *keys)
    tiny.make_text(f.path / "text.txt", 40)
    f.run("calibrate", "wide", "-o", "wide-state", "-q", "--data", "text.txt", *keys, *[
        w for key in ("samples=2", "seqlen=32", "epochs=1") for w in ("--set", "calibration." + key)])
    for model in (["wide-packed"], ["wide", "--state", "wide-state"], ["wide", "--simulate", "rtn", *keys]):
        f.fresh()
        own, _ = f.bytes(f.zeroshot(*model[1:], files=few, model=model[0]))
        other = f.zeroshot(*model[1:], "--set", "kv.target=llama.cpp-q4_0", files=few, model=model[0])
        f.refused(other, "settings" if "rtn" in model else "cache of llama.cpp-q4_0")
        f.fresh()
        result, _ = f.bytes(other)
        assert result["kv_target"] == "llama.cpp-q4_0" and "kv_target" not in own, (own, result)
        f.refused(f.zeroshot(*model[1:], files=few, model=model[0]), "is of another run")
    done = subprocess.run([w for w in other if w not in ("--json", "-o", OUT)], cwd=f.path, capture_output=True,
                          timeout=300)
    assert b"W4KV4 by simulation, cache of llama.cpp-q4_0, chunk 1, " in done.stdout, done.stdout


def test_other_heads(f):
    """A quantized head is a part of what rounds a checkpoint."""
    few = ["few.jsonl"]
    rtn = ["--simulate", "rtn", "--set", "weights.group_size=8", "--set", "kv.group_size=8"]
    for more in ([], ["--set", "head.bits=4", "--set", "head.group_size=8"]):
        f.fresh()
        f.bytes(f.zeroshot(*rtn, *more, files=few))
        f.refused(f.zeroshot(*rtn, "--set", "head.bits=8", "--set", "head.group_size=8", files=few),
                  "is of another run")


def test_two_at_once(f):
    """A second process on the same output is refused."""
    f.fresh()
    out = f.path / OUT
    with subprocess.Popen(f.zeroshot(), cwd=f.path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as p:
        # A file without a line may not be locked yet.
        while not (out.exists() and out.stat().st_size) and p.poll() is None:
            time.sleep(0.002)
        p.send_signal(signal.SIGSTOP)
        done = subprocess.run(f.zeroshot(), cwd=f.path, capture_output=True, timeout=300)
        assert p.poll() is None, "the first process has ended too early to tell"
        p.kill()
    assert done.returncode == 2 and b"another process works on this output" in done.stderr, done.stderr


def test_places(f):
    """A link is followed, and a pipe gets all lines at the end."""
    few = f.zeroshot(files=["few.jsonl"])
    f.fresh()
    want = f.bytes(few)[1]
    (f.path / "real.jsonl").write_bytes(b"".join(want.splitlines(keepends=True)[:2]))
    f.fresh()
    (f.path / OUT).symlink_to("real.jsonl")
    assert f.bytes(few)[1] == want and (f.path / OUT).is_symlink()
    f.fresh()
    read, write = os.pipe()
    subprocess.run([w if w != OUT else f"/dev/fd/{write}" for w in few], cwd=f.path, check=True, timeout=300,
                   stdout=subprocess.DEVNULL, pass_fds=[write])
    os.close(write)
    with open(read, "rb") as pipe:
        assert pipe.read() == want


def long_files(f, n=3):
    """Questions, prompts and lengths of two sets."""
    for name in ("qasper", "lcc"):
        test_tasks.write_rows(f.path / (name + ".jsonl"), [
            {"dataset": name, "length": 10 + i, "all_classes": None if i else ["x"],
             "context": f"Text {i} of {name}. ", "input": "What?", "answers": ["a b", "\u00e9"]} for i in range(n)])
    (f.path / "prompts.json").write_text(json.dumps({k: "{context}{input} A:" for k in ("qasper", "lcc")}))
    (f.path / "lengths.json").write_text(json.dumps({"qasper": 9, "lcc": 12}))


def longbench(f, model, out, *more, files=("qasper.jsonl", "lcc.jsonl")):
    return [f.wkvq, "eval", model, "--task", "longbench", "--prompts", "prompts.json", "--max-gen", "lengths.json",
            "--ctx", "60", "--json", "-q", "-o", out, *[w for x in files for w in ("--data", x)], *more]


def test_numbers_of_questions(f):
    """A noun goes with the number before it."""
    long_files(f)
    for more, said in ((("--limit", "1"), b"  1 of 3 questions, "), ((), b"  3 questions, ")):
        command = [w for w in longbench(f, "packed", OUT, *more, files=["qasper.jsonl"]) if w not in ("--json", "-o", OUT)]
        done = subprocess.run(command, cwd=f.path, capture_output=True, timeout=300)
        assert done.returncode == 0 and said in done.stdout, (done.stdout, done.stderr)


def eval_py(path):
    """What LongBench's eval.py takes from a file: answers, references, classes, lengths; and its score."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    total = 0
    for row in rows:
        if path.name.startswith("lcc"):
            scores = [int(round(100 * gen_scores.ratio(gen_scores.code_line(row["pred"]), a))) / 100
                      for a in row["answers"]]
        else:
            scores = [gen_scores.f1(row["pred"], a) for a in row["answers"]]
        total += max(0, *scores)
    return [(row["all_classes"], row["length"]) for row in rows], 100 * total / len(rows)


def test_longbench(f):
    """A directory with a file for each set, as eval.py reads them; the same in one file; after a kill."""
    long_files(f)
    f.fresh()
    result, one = f.bytes(longbench(f, "packed", OUT))
    done = subprocess.run(longbench(f, "packed", "pred/"), cwd=f.path, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    files = [f.path / "pred" / (name + ".jsonl") for name in ("qasper", "lcc")]
    assert b"".join(p.read_bytes() for p in files) == one
    for path, got in zip(files, result["sets"], strict=True):
        fields, score = eval_py(path)
        assert fields == [(["x"], 10), (None, 11), (None, 12)], fields
        test_tasks.near(got["score"], score, 1e-6, path.name)
        assert got["metric"] == ("similarity" if path.name == "lcc.jsonl" else "F1"), got
    mean = sum(s["score"] for s in result["sets"]) / 2
    test_tasks.near(result["average"]["score"], mean, 1e-6, "average")
    for part in (files[0].read_bytes(), one[:-20], b"".join(one.splitlines(keepends=True)[:1])):
        (f.path / OUT).write_bytes(part)
        assert f.bytes(longbench(f, "packed", OUT)) == (result, one)
    files[1].unlink()
    subprocess.run(longbench(f, "packed", "pred"), cwd=f.path, check=True, timeout=300, stdout=subprocess.DEVNULL)
    assert b"".join(p.read_bytes() for p in files) == one
    done = subprocess.run(longbench(f, "packed", "pred", files=["lcc.jsonl", "lcc.jsonl"]), cwd=f.path,
                          capture_output=True, timeout=300)
    assert done.returncode == 2 and b"--data lcc.jsonl: an earlier file holds questions of lcc as well" in done.stderr, done.stderr


def test_other_ends(f):
    """generation_config.json may say where an answer ends, which the checksum of a checkpoint leaves out."""
    long_files(f)
    shutil.copytree(f.path / "model", f.path / "ends")
    f.fresh()
    _, plain = f.bytes(longbench(f, "ends", OUT))
    (f.path / "ends/generation_config.json").write_text('{"eos_token_id": 257}')  # that of config.json
    assert f.bytes(longbench(f, "ends", OUT))[1] == plain
    preds = "".join(json.loads(line)["pred"] for line in plain.splitlines())
    end = next(c for c in preds if ord(c) < 128)
    for ids in ([ord(end)], [257, ord(end), 3]):
        (f.path / "ends/generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
        f.refused(longbench(f, "ends", OUT), ", ends ")
        f.fresh()
        _, other = f.bytes(longbench(f, "ends", OUT))
        assert not any(end in json.loads(line)["pred"] for line in other.splitlines()), other
    (f.path / "ends/generation_config.json").unlink()
    f.refused(longbench(f, "ends", OUT), "is of another run")


def test_progress(f):
    """The tokens of an answer count, not those of the prompts alone, which would show 0, 25, 50, 75 and 100 %."""
    long_files(f, 4)
    tiny.make_model(f.path / "slow", num_hidden_layers=24, max_position_embeddings=1024)
    (f.path / "lengths.json").write_text(json.dumps({"qasper": 900, "lcc": 12}))
    command = [w for w in longbench(f, "slow", OUT, files=["qasper.jsonl"]) if w not in ("--json", "-q", "-o", OUT)]
    read, write = os.openpty()
    with subprocess.Popen(command, cwd=f.path, stdout=subprocess.DEVNULL, stderr=write) as p:
        os.close(write)
        said = b""
        with contextlib.suppress(OSError):  # the end of a terminal
            while part := os.read(read, 65536):
                said += part
    os.close(read)
    assert p.returncode == 0, said
    shares = [int(x) for x in re.findall(rb"longbench: +(\d+)%", said)]
    assert shares == sorted(shares) and shares[-1] <= 100, shares
    assert any(share % 25 for share in shares), said


def test_predictions(f):
    """Given answers get the scores that they had, from one file or from several."""
    long_files(f)
    f.fresh()
    for out in ("pred/", OUT):
        f.call(longbench(f, "packed", out))
    result = None
    for files in (["pred/qasper.jsonl", "pred/lcc.jsonl"], [OUT]):
        given = json.loads(f.run("eval", "--task", "longbench", "--json",
                                 *[w for x in files for w in ("--predictions", x)]).stdout)
        scores = [(s["set"], s["n"], s["score"], s["stderr"]) for s in given["sets"]], given["average"]
        result = result or scores
        assert scores == result
        for entry in given["sets"]:
            path = f.path / "pred" / (entry["set"] + ".jsonl")
            test_tasks.near(entry["score"], eval_py(path)[1], 1e-6, entry["set"])


def test_predictions_nul(f):
    """A NUL, which a byte token can make, is a character like others."""
    texts = [("\0 m b", ["m b"]), ("m\0b c", ["m c", "m\0b"]), ("m\0b c", ["m\0d c"])]
    test_tasks.write_rows(f.path / "nul.jsonl", [{"set": "qasper", "pred": pred, "answers": answers,
                                                  "all_classes": None, "length": 1} for pred, answers in texts])
    given = json.loads(f.run("eval", "--task", "longbench", "--json", "--predictions", "nul.jsonl").stdout)
    test_tasks.near(given["sets"][0]["score"], eval_py(f.path / "nul.jsonl")[1], 1e-6, "NUL")


def test_full_precision(f):
    """A checkpoint answers in full precision: as an artifact of 16-bit weights and cache does."""
    long_files(f)
    tiny.make_model(f.path / "biased", seed=3, mlp_bias=True)
    f.run("convert", "biased", "-o", "plain", "-q", "--set", "weights.bits=16", "--set", "kv.bits=16")
    f.fresh()
    want, lines = f.bytes(longbench(f, "plain", OUT))
    f.fresh()
    got, own = f.bytes(longbench(f, "biased", OUT))
    assert got["method"] == "full precision" and got["weight_bits"] == 16 and got["kv_bits"] == 16, got
    assert [s["score"] for s in got["sets"]] == [s["score"] for s in want["sets"]]
    preds = [[json.loads(line)["pred"] for line in text.splitlines()] for text in (lines, own)]
    assert preds[0] == preds[1]
    assert len(set(preds[0])) > 1, "all answers are equal, which shows nothing"


if __name__ == "__main__":
    harness.main(globals(), Fixture)
