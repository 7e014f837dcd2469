#!/bin/sh
# SPDX-License-Identifier: MIT
# inspect.sh WKVQ MAKE_ARTIFACT: compares what inspect reports about a checkpoint and its artifact with figures
# computed here.
set -eu
command -v python3 >/dev/null || exit 77
[ -w /dev/shm ] && : "${TMPDIR:=/dev/shm}"
export TMPDIR
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
"$2" "$dir/model" "$dir/artifact" llama 4 16 0
"$1" inspect "$dir/model" | grep -q 'checkpoint, .*21 tensors'
"$1" inspect --shape llama-2-13b | grep -q '; vocabulary of 32000$'
"$1" inspect "$dir/model" | grep -q '; vocabulary of 40, texts of up to [0-9]* tokens$'
"$1" inspect "$dir/artifact" --tensors | grep -q 'model.layers.1.mlp.down_proj.qweight  *U8  *\[36,27\]'
"$1" inspect "$dir/model" --json >"$dir/model.json"
"$1" inspect "$dir/artifact" --json --memory --batch 3,1 --length 10 >"$dir/artifact.json"
"$1" inspect --shape llama-2-13b --json --batch 1 --length 2048,8192 >"$dir/shape.json"
"$1" inspect "$dir/artifact" --memory --batch 1 --length 10 >"$dir/memory.txt"
grep -q 'batch 1, length 10, kB of 10^3 bytes' "$dir/memory.txt"
if grep -E '^  (FP16|W4).* 0\.00 +[0-9.]+$' "$dir/memory.txt"; then exit 1; fi # the total
"$1" inspect --shape llama-2-13b --batch 1 --length 2048 | grep -q 'length 2048, GB of 10^9 bytes'
python3 - "$dir" <<'END'
import json, pathlib, sys
dir = pathlib.Path(sys.argv[1])
m, a = (json.loads((dir / f"{k}.json").read_text()) for k in ("model", "artifact"))
size = lambda d: sum(f.stat().st_size for f in (dir / d).iterdir())
projections = 2 * ((36 + 12 + 12 + 36 + 53 + 53) * 36 + 36 * 53)
packed = 2 * ((36 + 12 + 12 + 36 + 53 + 53) * (18 + 6 + 2) + 36 * (27 + 8 + 2))
assert m["kind"] == "checkpoint" and m["weight_bits"] == 16, m
assert m["weights"] == projections + 5 * 36 + 2 * 40 * 36, m
assert m["total_bytes"] == (dir / "model/model.safetensors").stat().st_size
assert a["kind"] == "artifact" and a["total_bytes"] == size("artifact"), a
assert a["quantized_weights"] == projections and a["quantized_bytes"] == packed, a
assert abs(a["weight_bits"] - 8 * packed / projections) < 1e-6, a
assert abs(a["kv_bits"] - 8 * 22 / 12) < 1e-6, a
assert a["memory"]["kv_bytes"] == 3 * 10 * 2 * 2 * 22, a
own, full = a["memory_table"][:2]
assert len(a["memory_table"]) == 4 and own["batch"] == 3, a
assert own["projection_bytes"] + own["weight_scale_bytes"] == packed, own
assert own["cache_bytes"] + own["cache_scale_bytes"] == 3 * 10 * 2 * 2 * 22, own
assert full["projection_bytes"] == 2 * projections and full["cache_scale_bytes"] == 0, full
shape = json.loads((dir / "shape.json").read_text())["memory_table"]
paper = {r["format"]: round(r["paper_bytes"] / 1e9, 1) for r in shape if r["length"] == 2048}
assert paper == {"FP16": 27.1, "W4": 8.0, "W4KV4": 6.8, "W4A4": 6.8}, paper
weights = 40 * (4 * 5120**2 + 3 * 5120 * 13824)
assert shape[0]["total_bytes"] == 2 * (weights + 2 * 32000 * 5120 + 81 * 5120) + 40 * 2 * 2048 * 5120 * 2
assert shape[2]["weight_scale_bytes"] == weights // 128 * 5 // 2, shape[2]
END
if "$1" inspect "$dir" 2>"$dir/err"; then exit 1; else [ $? -eq 2 ]; fi
grep -q config.json "$dir/err"
