#!/bin/sh
# SPDX-License-Identifier: MIT
# tokenize.sh WKVQ GOLDEN_TOK: the printed ids of a text, plain and as JSON, against the reference's.
set -eu
command -v python3 >/dev/null || exit 77
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
for kind in llama3 spm; do
    python3 - "$1" "$2" "$kind" "$dir" <<'END'
import json, pathlib, subprocess, sys
wkvq, golden, kind, dir = sys.argv[1:]
golden = pathlib.Path(golden)
texts = json.loads((golden / "texts.json").read_text(encoding="utf-8"))
cases = json.loads((golden / kind / "cases.json").read_text(encoding="utf-8"))
for i in (11, 21, 28, len(texts) - 1):
    path = pathlib.Path(dir) / "text.raw"  # rows would be joined for calibration, but not here
    path.write_bytes(texts[i].encode())
    want = cases["ids"][i][cases["around"]:]
    run = lambda *more: subprocess.run([wkvq, "tokenize", golden / kind, path, *more], capture_output=True, check=True).stdout
    assert run() == (" ".join(map(str, want)) + "\n").encode(), (kind, texts[i])
    out = json.loads(run("--json"))
    assert out["ids"] == want and out["tokens"] == len(want) and out["bytes"] == len(texts[i].encode()), out
END
done
if "$1" tokenize "$dir" "$dir/text.raw" >"$dir/out" 2>"$dir/err"; then exit 1; else [ $? -eq 2 ]; fi
[ ! -s "$dir/out" ]
grep -q 'no tokenizer.json and no tokenizer.model' "$dir/err"
