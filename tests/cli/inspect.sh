#!/bin/sh
# SPDX-License-Identifier: MIT
# inspect.sh WKVQ MAKE_ARTIFACT: what inspect says of a checkpoint and of its artifact, against figures
# counted here.
set -eu
command -v python3 >/dev/null || exit 77
[ -w /dev/shm ] && : "${TMPDIR:=/dev/shm}"
export TMPDIR
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
"$2" "$dir/model" "$dir/artifact" llama 4 16 0
"$1" inspect "$dir/model" | grep -q 'checkpoint, .*21 tensors'
"$1" inspect "$dir/artifact" --tensors | grep -q 'model.layers.1.mlp.down_proj.qweight  *U8  *\[36,27\]'
"$1" inspect "$dir/model" --json >"$dir/model.json"
"$1" inspect "$dir/artifact" --json --batch 3 --length 10 >"$dir/artifact.json"
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
END
if "$1" inspect "$dir" 2>"$dir/err"; then exit 1; else [ $? -eq 2 ]; fi
grep -q config.json "$dir/err"
