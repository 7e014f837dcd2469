#!/bin/bash
# SPDX-License-Identifier: MIT
# Perplexity of this tool's methods and of its peers, with the same checkpoint, text, 12 windows of 2048 tokens, and evaluation.
#   tools/peers/accuracy.sh MODEL TRAIN TEST WORK      TRAIN and TEST: WikiText-2 raw, or a part of it
# A finished step is not run again, so the same command resumes after an interruption. The time of a calibration is the sum of
# its runs, as elapsed time and as processor time. Then: python3 tools/peers/table.py accuracy WORK
# Environment: WKVQ, PYTHON (has auto-round, torch, transformers, gguf, sentencepiece), THREADS, JOBS.
set -eu -o pipefail
here=$(cd "$(dirname "$0")" && pwd)
fail() {
    echo "accuracy.sh: $*" >&2
    exit 1
}
[ $# -eq 4 ] || fail "want MODEL TRAIN TEST WORK"
model=$1 train=$2 test=$3
export PYTHON=${PYTHON:-python3} WKVQ=${WKVQ:-build/tools/wkvq} THREADS=${THREADS:-2}
mkdir -p "$4/rows"
work=$(cd "$4" && pwd)
text=$work/test.txt
samples=(--set calibration.samples=16 --set calibration.seqlen=1024 --set calibration.epochs=4)

# --- steps ----------------------------------------------------------------------------------------------------------------------

# timed NAME COMMAND...: appends elapsed and user seconds to NAME.time, whether the command succeeds or is interrupted.
timed() {
    local name=$1 rc=0 TIMEFORMAT='%R %U'
    shift
    { time "$@" >"$work/$name.log" 2>&1; } 2>>"$work/$name.time" || rc=$?
    [ $rc -eq 0 ] || fail "$name failed: see $work/$name.log"
}

# row NAME MODEL_OR_ARTIFACT [OPTION...]: perplexity by both definitions.
row() {
    local name=$1 subject=$2 score out
    shift 2
    for score in all second-half; do
        out=$work/rows/$name.$score.json
        [ ! -f "$out" ] || continue
        "$WKVQ" eval "$subject" --data "$text" --join file --windows 12 --score $score -j "$THREADS" -q --json "$@" >"$out.part" ||
            fail "evaluation of $name failed"
        mv "$out.part" "$out"
        echo "$name, $score: $(grep -o '"ppl": [0-9.]*' "$out")"
    done
}

# artifact NAME: the artifact's bits, and a row.
artifact() {
    "$WKVQ" inspect "$work/$1" --json >"$work/rows/$1.inspect.json"
    row "$1" "$work/$1"
}

# calibrated NAME OPTION...: calibrate and convert, each once, then a row.
calibrated() {
    local name=$1
    shift
    if [ ! -d "$work/$name" ]; then
        timed "$name" "$WKVQ" calibrate "$model" --data "$train" -o "$work/$name.state" -j "$THREADS" "$@"
        "$WKVQ" convert "$model" --state "$work/$name.state" -o "$work/$name" -q
    fi
    artifact "$name"
}

# cache_only NAME MODEL [OPTION...]: a row with the checkpoint's own weights and a quantized cache.
cache_only() { row "$1" "$2" --simulate rtn --set weights.bits=16 --set kv.method=token "${@:3}"; }

# Formats by layer from `wkvq tune`, which compares trials on the last fifth of the text and calibrates them on the rest.
tuned() {
    local name=w4kv4-best-tuned lines
    if [ ! -f "$work/$name.yaml" ]; then
        lines=$(wc -l <"$train")
        head -n $((lines * 4 / 5)) "$train" >"$work/most.raw"
        tail -n +$((lines * 4 / 5 + 1)) "$train" >"$work/rest.raw"
        timed $name "$WKVQ" tune "$model" -c "$here/../../configs/w4kv4-best.yaml" --max-bits 4.2 --max-kv-bits 4.5 \
            --data "$work/most.raw" --eval "$work/rest.raw" -j "$THREADS" -o "$work/$name.yaml"
        cp "$work/$name.log" "$work/$name.choice.log"
    fi
    calibrated $name -c "$work/$name.yaml"
    # about the same time, spent on more samples instead of later blocks
    calibrated $name-wide -c "$work/$name.yaml" --set crr.blocks=0 --set calibration.samples=64
}

ours() {
    row fp "$model"
    cache_only kv4 "$model"
    cache_only kv4-rotated "$model" --set kv.rotate=kv
    if [ ! -d "$work/rtn-kv4" ]; then
        timed rtn-kv4 "$WKVQ" convert "$model" --set kv.method=token -o "$work/rtn-kv4"
    fi
    artifact rtn-kv4
    calibrated gptq-kv4 --set weights.method=gptq --set weights.act_order=true --set kv.method=token --set calibration.samples=32 \
        --set calibration.seqlen=1024
    calibrated w4kv4-best -c "$here/../../configs/w4kv4-best.yaml"
    calibrated w4kv4 -c "$here/../../configs/w4kv4.yaml" "${samples[@]}"
    tuned
}

autoround() {
    if [ ! -d "$work/autoround" ]; then
        rm -rf "$work/autoround.part"
        "$PYTHON" "$here/autoround.py" "$model" "$work/autoround.part" --wkvq "$WKVQ" --data "$train" --threads "$THREADS" \
            >"$work/autoround.log" 2>&1 || fail "AutoRound failed, so its rows are missing: see $work/autoround.log"
        mv "$work/autoround.part" "$work/autoround"
    fi
    row autoround "$work/autoround"
    cache_only autoround-kv4 "$work/autoround"
    cache_only autoround-kv4-rotated "$work/autoround" --set kv.rotate=kv
}

# --------------------------------------------------------------------------------------------------------------------------------

[ -f "$text" ] || { "$PYTHON" "$here/joined.py" "$test" >"$text.part" && mv "$text.part" "$text"; }
[ -f "$work/train.txt" ] || { "$PYTHON" "$here/joined.py" "$train" >"$work/train.part" && mv "$work/train.part" "$work/train.txt"; }
ours
autoround
IMATRIX=$work/train.txt "$here/llama_cpp.sh" build "$model" "$work"
"$here/llama_cpp.sh" accuracy "$text" "$work"
