#!/bin/sh
# SPDX-License-Identifier: MIT
# check_artifact.sh MAKE_ARTIFACT CHECK_ARTIFACT.py: artifacts of several widths, through the reader that
# was written from the documentation.
set -eu
command -v python3 >/dev/null || exit 77
[ -w /dev/shm ] && : "${TMPDIR:=/dev/shm}"
export TMPDIR
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
for case in "llama 4 16 0" "qwen2 3 5 4000" "qwen3 2 0 0 k=5,0.v=3:5,1.k=16" "llama 5 64 9000 0-1.v=8:2" "llama 8 16 0"; do
    # shellcheck disable=SC2086
    set -- "$1" "$2" $case
    rm -rf "$dir/model" "$dir/artifact"
    bytes=$("$1" "$dir/model" "$dir/artifact" "$3" "$4" "$5" "$6" "${7-}")
    python3 "$2" "$dir/model" "$dir/artifact" "$bytes"
done
rm -rf "$dir/model" "$dir/artifact"
bytes=$("$1" "$dir/model" "$dir/artifact" qwen2 4 16 0 'v=8' \
    'v_proj=8:5, 0.down_proj=3:0, 1.o_proj=6, 1.q_proj=2, 0-1.k_proj=16')
python3 "$2" "$dir/model" "$dir/artifact" "$bytes" | grep '\[2, 3, 4, 6, 8, 16\] bits agree'
for type in llama qwen3; do # the head of one of them is tied
    rm -rf "$dir/model" "$dir/artifact"
    bytes=$("$1" "$dir/model" "$dir/artifact" $type 4 16 0 '' '' 6)
    python3 "$2" "$dir/model" "$dir/artifact" "$bytes"
done
# The checker must find a flipped byte, or it checks nothing.
printf '\377' | dd of="$dir/artifact/model.safetensors" bs=1 seek=9000 conv=notrunc 2>/dev/null
if python3 "$2" "$dir/model" "$dir/artifact" 2>/dev/null; then
    echo "a damaged artifact passed" >&2
    exit 1
fi
