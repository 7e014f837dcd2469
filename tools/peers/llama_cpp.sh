#!/bin/bash
# SPDX-License-Identifier: MIT
# llama.cpp with the checkpoint, text and windows of `wkvq eval`, and its speed, measured alternately with `wkvq bench decode`.
#   tools/peers/llama_cpp.sh build    MODEL WORK     download and build it, convert MODEL to GGUF, quantize the GGUF file
#   tools/peers/llama_cpp.sh accuracy TEXT WORK      llama-perplexity, a log per row in WORK/llama.cpp/logs; existing logs stay
#   tools/peers/llama_cpp.sh speed    ARTIFACT WORK  rewrite WORK/speed.jsonl; needs an idle machine, and reports whether it was
# TEXT is the joined text (tools/peers/joined.py). tools/peers/table.py prints tables of the results.
# Environment: PYTHON (has torch, transformers, gguf, sentencepiece), WKVQ, JOBS, THREADS (accuracy), ROUNDS,
# STEPS, DEPTH (speed), and IMATRIX, a joined text (not TEXT) for an importance matrix, which adds rows iq4_nl-imatrix.
set -eu -o pipefail
python=${PYTHON:-python3}
wkvq=${WKVQ:-build/tools/wkvq}
version=0.3.36 # of llama-cpp-python, whose source package carries llama.cpp
fail() {
    echo "llama_cpp.sh: $*" >&2
    exit 1
}
[ $# -eq 3 ] || fail "want build MODEL WORK, accuracy TEXT WORK or speed ARTIFACT WORK"
mkdir -p "$3/llama.cpp/logs"
work=$(cd "$3" && pwd)
dir=$work/llama.cpp
bin=$dir/build/bin

# --- build ----------------------------------------------------------------------------------------------------------------------

get() {
    [ ! -d "$dir/source" ] || return 0
    "$python" -m pip download -q --no-deps --no-binary llama-cpp-python -d "$dir" "llama-cpp-python==$version" ||
        fail "no source package of llama-cpp-python $version: nothing was built or measured"
    rm -rf "$dir/unpacked"
    mkdir "$dir/unpacked"
    tar -C "$dir/unpacked" --strip-components=1 -xzf "$dir/llama_cpp_python-$version.tar.gz"
    mv "$dir/unpacked" "$dir/source"
}

build() {
    local programs=(llama-perplexity llama-quantize llama-imatrix llama-bench) p
    for p in "${programs[@]}"; do [ -x "$bin/$p" ] || break; done
    [ ! -x "$bin/$p" ] || return 0
    cmake -S "$dir/source/vendor/llama.cpp" -B "$dir/build" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=ON \
        -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF \
        -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF >"$dir/cmake.log"
    cmake --build "$dir/build" -j "${JOBS:-2}" --target "${programs[@]}" >"$dir/build.log"
}

convert() {
    [ ! -f "$dir/f16.gguf" ] || return 0
    "$python" "$dir/source/vendor/llama.cpp/convert_hf_to_gguf.py" "$1" --outtype f16 --outfile "$dir/part.gguf" >"$dir/convert.log" 2>&1 ||
        fail "convert_hf_to_gguf.py failed: see $dir/convert.log"
    mv "$dir/part.gguf" "$dir/f16.gguf"
}

# quantize NAME TYPE [OPTION...]
quantize() {
    local name=$1 type=$2
    shift 2
    [ ! -f "$dir/$name.gguf" ] || return 0
    "$bin/llama-quantize" "$@" "$dir/f16.gguf" "$dir/part.gguf" "$type" "${JOBS:-2}" >"$dir/logs/quantize-$name.txt" 2>&1 ||
        fail "llama-quantize failed: see $dir/logs/quantize-$name.txt"
    mv "$dir/part.gguf" "$dir/$name.gguf"
}

importance() {
    [ -n "${IMATRIX:-}" ] || return 0
    [ -f "$dir/imatrix.gguf" ] || "$bin/llama-imatrix" -m "$dir/f16.gguf" -f "$IMATRIX" -c 1024 --chunks 32 -t "${THREADS:-2}" \
        -o "$dir/imatrix.gguf" >"$dir/logs/imatrix.txt" 2>&1 || fail "llama-imatrix failed: see $dir/logs/imatrix.txt"
    quantize iq4_nl-imatrix IQ4_NL --imatrix "$dir/imatrix.gguf"
}

# --- accuracy -------------------------------------------------------------------------------------------------------------------

# perplexity TEXT WEIGHTS CACHE [plain]: over the second half of each window, as llama-perplexity defines it. plain: the cache is not
# rotated (by default llama.cpp rotates a quantized cache).
perplexity() {
    local log=$dir/logs/$2+$3${4:+-$4}.txt
    [ ! -f "$log" ] || return 0
    [ -f "$dir/$2.gguf" ] || return 0
    LLAMA_ATTN_ROT_DISABLE=${4:+1} "$bin/llama-perplexity" -m "$dir/$2.gguf" -f "$1" -c 2048 -b 2048 --chunks 12 --ppl-output-type 1 \
        -fa on -ctk "$3" -ctv "$3" -t "${THREADS:-2}" >"$log.part" 2>&1 || fail "llama-perplexity failed: see $log.part"
    grep -q 'Final estimate' "$log.part" || fail "llama-perplexity did not finish: see $log.part"
    mv "$log.part" "$log"
    echo "${log##*/}: $(grep -o 'Final estimate.*' "$log")"
}

accuracy() {
    local w
    perplexity "$1" f16 f16
    for w in iq4_nl iq4_nl-imatrix q4_0 q4_1 q4_k_m; do
        perplexity "$1" $w f16
        perplexity "$1" $w q4_0
    done
    perplexity "$1" f16 q4_0
    perplexity "$1" f16 q4_0 plain
    perplexity "$1" f16 q4_1
    perplexity "$1" f16 q4_1 plain
}

# --- speed ----------------------------------------------------------------------------------------------------------------------

steps=${STEPS:-64} depth=${DEPTH:-1800}
peer() { "$bin/llama-bench" -m "$dir/q4_0.gguf" -r 1 -o jsonl "$@" 2>/dev/null | grep '^{' >>"$out"; }

# decode ARTIFACT THREADS DEPTH: one token at a time after DEPTH others. The peer's f16 cache runs with and without flash attention,
# because either may be faster; its q4_0 cache needs it.
decode() {
    peer -p 0 -n "$steps" -d "$3" -t "$2" -fa 0 -ctk f16 -ctv f16
    "$wkvq" bench decode "$1" --depth "$3" --steps "$steps" -j "$2" -q --json >>"$out"
    peer -p 0 -n "$steps" -d "$3" -t "$2" -fa 1 -ctk f16 -ctv f16
    peer -p 0 -n "$steps" -d "$3" -t "$2" -fa 1 -ctk q4_0 -ctv q4_0
}

# Clock ticks: used by all processes, used by this shell's children, and total.
ticks() {
    local cpu own
    read -r -a cpu </proc/stat
    own=$(sed 's/.*) //' /proc/$$/stat | awk '{ print $14 + $15 }')
    echo $((cpu[1] + cpu[2] + cpu[3] + cpu[6] + cpu[7] + cpu[8])) "$own" $((cpu[1] + cpu[2] + cpu[3] + cpu[4] + cpu[5] + cpu[6] + cpu[7] + cpu[8]))
}

speed() {
    local artifact=$1 before after share i threads
    before=$(ticks)
    : >"$out"
    for ((i = 1; i <= ${ROUNDS:-5}; i++)); do
        for threads in 2 1; do
            decode "$artifact" $threads 0
            decode "$artifact" $threads "$depth"
            peer -p "$depth" -n 0 -t $threads -fa 1 -ctk f16 -ctv f16
            "$wkvq" bench decode "$artifact" --depth "$depth" --steps 1 --compute bf16 --chunk 512 -j $threads -q --json >>"$out"
            peer -p "$depth" -n 0 -t $threads -fa 1 -ctk q4_0 -ctv q4_0
        done
        echo "round $i of ${ROUNDS:-5}" >&2
    done
    after=$(ticks)
    share=$(echo "$before $after" | awk '{ printf "%.3f", ($4 - $1 - ($5 - $2)) / ($6 - $3) }')
    printf '{"file_bytes": {"llama.cpp": %s, "wkvq": %s}, "others_share": %s}\n' "$(stat -Lc %s "$dir/q4_0.gguf")" \
        "$(stat -c %s "$artifact"/*.safetensors | awk '{ s += $1 } END { print s }')" "$share" >>"$out"
    echo "other processes used $share of the machine's time" >&2
    awk "BEGIN { exit !($share > 0.03) }" && echo 'llama_cpp.sh: the machine was not idle, so do not compare these figures' >&2
    mv "$out" "$work/speed.jsonl"
}

# --------------------------------------------------------------------------------------------------------------------------------

case $1 in
build)
    get
    build
    convert "$2"
    quantize q4_0 Q4_0
    quantize q4_1 Q4_1
    quantize iq4_nl IQ4_NL
    quantize q4_k_m Q4_K_M
    importance
    ;;
accuracy) accuracy "$2" ;;
speed)
    [ -x "$bin/llama-bench" ] || fail "no llama.cpp in $work: build it first"
    out=$work/speed.part
    speed "$2"
    ;;
*) fail "unknown command $1: want build, accuracy or speed" ;;
esac
