#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Prints the results of tools/peers/accuracy.sh and llama_cpp.sh as tables.

    python3 tools/peers/table.py accuracy WORK
    python3 tools/peers/table.py speed WORK

Losses are mean negative log-likelihoods in nats per token. Differences are paired: the mean over windows of the difference of two
rows' losses, with its standard error. Needs the gguf package.
"""
import argparse
import json
import math
import pathlib
import re
import statistics
import sys

from gguf import GGUFReader

CACHE_BITS = {"f16": 16, "q4_0": 4.5, "q4_1": 5}
# Row, weights, cache, the row whose artifact gives the bits ("" = 16 bits), and the row whose calibration gives the time. AutoRound's
# format has the bits of round to nearest: 4 bits, and a 16-bit scale and a 4-bit zero per group.
ROWS = [
    ("fp", "16 bit", "16 bit", "", ""),
    ("kv4", "16 bit", "token-wise", "", "rtn-kv4"),
    ("kv4-rotated", "16 bit", "token-wise, rotated", "", "rtn-kv4"),
    ("rtn-kv4", "round to nearest", "token-wise", "rtn-kv4", "rtn-kv4"),
    ("gptq-kv4", "GPTQ, act-order", "token-wise", "gptq-kv4", "gptq-kv4"),
    ("w4kv4", "`configs/w4kv4.yaml`, 16 x 1024 x 4", "the same", "w4kv4", "w4kv4"),
    ("w4kv4-best", "`configs/w4kv4-best.yaml`", "the same", "w4kv4-best", "w4kv4-best"),
    ("w4kv4-best-tuned", "the same, formats by layer (`wkvq tune`)", "the same", "w4kv4-best-tuned", "w4kv4-best-tuned"),
    ("w4kv4-best-tuned-wide", "these formats, k = 0, 64 x 1024", "the same", "w4kv4-best-tuned-wide", "w4kv4-best-tuned-wide"),
    ("autoround", "AutoRound", "16 bit", "rtn-kv4", ""),
    ("autoround-kv4", "AutoRound", "token-wise", "rtn-kv4", "rtn-kv4"),
    ("autoround-kv4-rotated", "AutoRound", "token-wise, rotated", "rtn-kv4", "rtn-kv4"),
]
SELF = "w4kv4-best"


def stop(message):
    sys.exit(f"table.py: {message}")


def load(path):
    return json.loads(path.read_text()) if path.exists() else None


# --- what was measured ----------------------------------------------------------------------------------------------------------


def seconds_of(work, name):
    """Returns elapsed and user seconds of a calibration, or None."""
    if name.startswith("autoround"):
        note = load(work / "autoround" / "autoround.json")
        return note and (note["seconds"], note["user_seconds"])
    path = work / f"{name}.time"
    if not path.exists():
        return None
    parts = [[float(x) for x in line.split()] for line in path.read_text().splitlines()]
    return tuple(sum(column) for column in zip(*parts))


def bits_of(work, counted, key):
    note = load(work / "rows" / f"{counted}.inspect.json") if counted else None
    return note[key] if note else 16 if not counted else None


def own_rows(work):
    for name, weights, cache, weight_bits, cache_bits in ROWS:
        half, full = (load(work / "rows" / f"{name}.{score}.json") for score in ("second-half", "all"))
        if half and full:
            yield {
                "name": name, "weights": weights, "cache": cache, "half": half["window_nll"], "all": full["window_nll"],
                "weight_bits": bits_of(work, weight_bits, "weight_bits"), "kv_bits": bits_of(work, cache_bits, "kv_bits"),
                "base": "fp", "seconds": seconds_of(work, name),
            }  # fmt: skip
        else:
            print(f"table.py: {name} is not measured", file=sys.stderr)


def gguf_bits(path):
    """Returns the effective bits of the layers' matrices, with scales, minima, and the types that matrices fell back to."""
    matrices = [t for t in GGUFReader(path).tensors if t.name.startswith("blk.") and len(t.shape) == 2]
    return 8 * sum(int(t.n_bytes) for t in matrices) / sum(int(t.n_elements) for t in matrices)


def log_windows(path):
    """Returns the mean loss of each window, from the running means of llama-perplexity --ppl-output-type 1."""
    running = [float(m[1]) for m in re.finditer(r"^ *\d+ +[\d.]+ +([\d.]+) +[\d.]+ *$", path.read_text(), re.M)]
    if not running or not all(map(math.isfinite, running)):
        stop(f"{path}: contains no windows")
    return [n * m - (n - 1) * before for n, (m, before) in enumerate(zip(running, [0, *running]), 1)]


def peer_rows(work):
    peer = work / "llama.cpp"
    for path in sorted((peer / "logs").glob("*+*.txt")):
        weights, cache = path.stem.split("+")
        kind, plain = cache.removesuffix("-plain"), cache.endswith("-plain")
        rotation = "" if kind == "f16" else ", not rotated" if plain else ", rotated"
        yield {
            "name": path.stem, "weights": f"llama.cpp {weights}", "cache": kind + rotation, "half": log_windows(path), "all": None,
            "weight_bits": gguf_bits(peer / f"{weights}.gguf"), "kv_bits": CACHE_BITS[kind], "base": "f16+f16", "seconds": None,
        }  # fmt: skip


# --- accuracy -------------------------------------------------------------------------------------------------------------------


def mean_of(losses):
    return statistics.fmean(losses)


def paired(a, b):
    """Returns mean and standard error of a - b over the windows."""
    if len(a) != len(b):
        stop(f"rows of {len(a)} and {len(b)} windows")
    d = [x - y for x, y in zip(a, b)]
    return statistics.fmean(d), statistics.stdev(d) / math.sqrt(len(d))


def difference(a, b):
    return "{:+.4f} +- {:.4f}".format(*paired(a, b))


def check_tokens(rows):
    """Both programs must have the same loss on every window in full precision, or they did not read the same tokens."""
    if "fp" in rows and "f16+f16" in rows:
        a, b = rows["fp"]["half"], rows["f16+f16"]["half"]
        if len(a) != len(b):
            stop(f"the two programs scored {len(a)} and {len(b)} windows")
        worst = max(abs(x - y) for x, y in zip(a, b))
        print(f"full precision, the two programs' largest difference on a window: {worst:.5f} nats\n")
        if worst > 0.005:
            stop("the two programs did not read the same tokens")


def cells_of(row, rows):
    base = rows[row["base"]]
    loss = "" if row is base else difference(row["half"], base["half"])
    whole = "" if row is base or not row["all"] else difference(row["all"], base["all"])
    own = "" if SELF not in rows or row["name"] == SELF else difference(row["half"], rows[SELF]["half"])
    bits = ["" if row[k] is None else f"{row[k]:.3f}".rstrip("0").rstrip(".") for k in ("weight_bits", "kv_bits")]
    perplexity = f"{math.exp(mean_of(row['all'])):.3f}" if row["all"] else ""
    seconds = "{:.0f} ({:.0f})".format(*row["seconds"]) if row["seconds"] else ""
    return [row["weights"], row["cache"], *bits, perplexity, whole, f"{math.exp(mean_of(row['half'])):.3f}", loss, own, seconds]


def print_verdict(rows, name):
    """Compares one row's loss with that of each peer that quantizes weights and cache."""
    if name not in rows:
        return
    mine = rows[name]
    loss = paired(mine["half"], rows["fp"]["half"])[0]
    print(f"\n{name} loses {loss:.4f} nats by second halves, at {mine['weight_bits']:.3f} + {mine['kv_bits']:.3f} bits. Against:\n")
    peers = [r for r in rows.values() if r["name"].startswith(("autoround-kv4", "gptq")) or "+q" in r["name"]]
    for r in sorted((r for r in peers if r["weight_bits"] < 16), key=lambda r: mean_of(r["half"])):
        other = paired(r["half"], rows[r["base"]]["half"])[0]
        fair = r["weight_bits"] <= mine["weight_bits"] + 0.03 and r["kv_bits"] <= mine["kv_bits"]
        print(f"- {r['weights']}, {r['cache']} ({r['weight_bits']:.3f} + {r['kv_bits']:g} bits): {other:.4f}, "
              f"{100 * (1 - loss / other):.0f}% smaller{'' if fair else '; that one has more bits'}")


def print_table(head, lines):
    for cells in [head, ["---"] * len(head), *lines]:
        print("| " + " | ".join(cells) + " |")


def accuracy(work):
    rows = {r["name"]: r for r in [*own_rows(work), *peer_rows(work)]}
    if "fp" not in rows:
        stop(f"no row in full precision in {work}/rows")
    check_tokens(rows)
    print_table(["weights", "cache", "weight bits", "cache bits", "perplexity", "loss", "second half", "loss", f"less {SELF}'s",
                 "calibration, s (user s)"], [cells_of(r, rows) for r in rows.values()])
    for name in (SELF, "w4kv4-best-tuned", "w4kv4-best-tuned-wide"):
        print_verdict(rows, name)


# --- speed ----------------------------------------------------------------------------------------------------------------------


def measured(line):
    """Yields ((program and cache, threads, depth or "prompt"), tokens per second) of each figure in a line."""
    if "type_k" in line:
        name = f"llama.cpp q4_0, {line['type_k']} cache"
        if line["n_gen"] and line["type_k"] == "f16":
            name += ", flash attention" if line["flash_attn"] not in (0, False, "off") else ", no flash attention"
        yield (name, line["n_threads"], line["n_depth"] if line["n_gen"] else "prompt"), line["avg_ts"]
    elif line.get("compute") == "BF16":
        yield (f"wkvq W4 g128 + KV4, bf16, chunks of {line['chunk']}", line["threads"], "prompt"), line["prefill_tokens_per_s"]
    elif "token_s" in line:
        yield ("wkvq W4 g128 + KV4", line["threads"], line["depth"]), line["tokens_per_s"]
        if line["depth"]:
            yield ("wkvq W4 g128 + KV4", line["threads"], "prompt"), line["prefill_tokens_per_s"]


def cache_bytes(path, tokens):
    """Returns the bytes of llama.cpp's f16 and q4_0 caches."""
    reader = GGUFReader(path)
    layers, heads, groups, width = (int(reader.get_field("llama." + k).contents()) for k in (
        "block_count", "attention.head_count", "attention.head_count_kv", "embedding_length"))
    elements = 2 * layers * groups * (width // heads) * tokens
    return {kind: elements * CACHE_BITS[kind] / 8 for kind in ("f16", "q4_0")}


def speed(work):
    lines = [json.loads(line) for line in (work / "speed.jsonl").read_text().splitlines()]
    rates, last = {}, lines[-1]
    for line in lines:
        for key, rate in measured(line):
            rates.setdefault(key, []).append(rate)
    if "others_share" not in last or not rates:
        stop("speed.jsonl is incomplete: the run did not finish")
    print(f"other processes used {100 * last['others_share']:.1f}% of the machine; {max(map(len, rates.values()))} rounds; "
          "tokens per second: median (least to most)\n")
    columns = sorted({k[1:] for k in rates}, key=lambda c: (-c[0], str(c[1])))
    head = ["", *(f"{t} threads, {d if d == 'prompt' else f'depth {d}'}" for t, d in columns)]
    names = dict.fromkeys(k[0] for k in rates)
    print_table(head, [[name, *(cell(rates.get((name, *c))) for c in columns)] for name in names])
    deepest = max((line for line in lines if "token_s" in line), key=lambda line: line["depth"])
    theirs = cache_bytes(work / "llama.cpp" / "q4_0.gguf", deepest["depth"])
    print(f"\nfiles: {last['file_bytes']}; cache of {deepest['depth']} tokens, bytes: wkvq {deepest['cache_bytes']}, "
          f"llama.cpp f16 {theirs['f16']:.0f}, q4_0 {theirs['q4_0']:.0f}")
    for threads, depth in (c for c in columns if c[1] != "prompt"):
        at = {k[0]: statistics.median(v) for k, v in rates.items() if k[1:] == (threads, depth)}
        own = at.pop("wkvq W4 g128 + KV4", None)
        if own and at:
            best = max(at, key=at.get)
            print(f"{threads} threads, depth {depth}: {own / at[best]:.2f} times {best}")


def cell(values):
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})" if values else ""


# --------------------------------------------------------------------------------------------------------------------------------


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("what", choices=["accuracy", "speed"])
    ap.add_argument("work", type=pathlib.Path)
    a = ap.parse_args()
    {"accuracy": accuracy, "speed": speed}[a.what](a.work)


main()
