#!/bin/bash
# SPDX-License-Identifier: MIT
# tools/dev/gpu-check without a GPU: a folder like its bundle, run without and with the emulation. gpu_check.sh SCRIPT WKVQ WKVQ-EMU CHECKOP ROOT
set -eu
script=$1 wkvq=$(realpath "$2") emu=$(realpath "$3") checkop=$(realpath "$4") root=$5
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
fail() { echo "gpu_check: $1"; cat "$dir"/*.out "$dir"/*/results.jsonl; exit 1; }

# folder NAME WKVQ: the folder that stage() of the script makes, without its libraries.
folder() {
    mkdir -p "$dir/$1/bin" "$dir/$1/demo"
    ln -s "$2" "$dir/$1/bin/wkvq"
    ln -s "$checkop" "$dir/$1/bin/checkop"
    cp "$root"/data/demo/* "$dir/$1/demo/"
    cp "$root/configs/demo.yaml" "$dir/$1/"
    cp "$script" "$dir/$1/"
}

# Without a GPU: one line that says so, and exit 2.
folder bare "$wkvq"
rc=0
(cd "$dir/bare" && env -i PATH="$PATH" CUDA_VISIBLE_DEVICES= ./gpu-check >"$dir/bare.out" 2>&1) || rc=$?
[ $rc = 2 ] || fail "exit $rc without a GPU"
[ "$(wc -l <"$dir/bare/results.jsonl")" = 1 ] || fail 'more than one line without a GPU'
grep -q '"outcome": "failed".*"note": ".*device' "$dir/bare/results.jsonl" || fail 'the missing GPU is not named'

# Libraries are also searched in the packages of a Python that is in no active environment.
mkdir "$dir/path"
printf '#!/bin/sh\necho /opt/python/lib/python3.12/site-packages/nvidia\n' >"$dir/path/python3"
# shellcheck disable=SC2016
printf '#!/bin/sh\necho "searched below $VIRTUAL_ENV" >&2\nexit 1\n' >"$dir/path/wkvq"
chmod +x "$dir/path/python3" "$dir/path/wkvq"
folder packages "$dir/path/wkvq"
(cd "$dir/packages" && env -i PATH="$dir/path:$PATH" ./gpu-check >"$dir/packages.out" 2>&1) || rc=$?
grep -q '"note": "searched below /opt/python"' "$dir/packages/results.jsonl" || fail 'the packages of Python are not searched'

folder emulated "$emu"
"$script" --emulate "$dir/emulated" --out "$dir/first" >"$dir/emulated.out" 2>&1 || fail 'the emulated run failed'
grep -q '^== parity: exit 0' "$dir/first/log.txt" || fail 'the log lacks a check'

# A second run repeats what failed, and nothing else.
sed 's/"check": "parity", "outcome": "passed"/"check": "parity", "outcome": "failed"/' "$dir/first/results.jsonl" >"$dir/prior.jsonl"
"$script" --emulate "$dir/emulated" --again "$dir/prior.jsonl" --out "$dir/second" >"$dir/again.out" 2>&1 || fail 'the second run failed'
[ "$(grep -o '"check": "[^"]*", "outcome": "passed"' "$dir/second/results.jsonl" | cut -d'"' -f4 | xargs)" = 'a device parity' ] ||
    fail 'the second run has other checks'
python3 - "$dir/first/results.jsonl" <<'END'
import json
import sys

lines = [json.loads(line) for line in open(sys.argv[1])]
by = {r["check"]: r for r in lines}
assert "emulated" in by["a device"]["device"], by
assert by["parity"]["outcome"] == "passed", by
c = by["calibration, cuda f32 against cpu"]
assert c["outcome"] == "passed" and 0 <= float(c["loss_difference"]) <= 0.02 and 0 <= float(c["ppl_difference"]) <= 0.01, c
assert all(float(p) > 1 for p in c["ppl"]), c
b = by["bench calibrate k5"]["result"]
assert b["step_s"] > 0 and b["run_s"] > b["step_s"] and b["parts_step_s"] != b["step_s"], b
END
