#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""mutate.py ROOT NAME MUTANT OUT: writes cuda_NAME.cu of kernels/cuda with a mistake in it and its headers inlined.
mutate.py --caught COMMAND...: runs the parity test on it.

If the parity test does not detect a mutant, the test is too weak. If the text that a mutant replaces is missing, the build
fails. block_reduce gets another name, so that the linker does not use that of another file.
"""
import pathlib
import re
import subprocess
import sys

# mutant: (anchor, the text soon after it that is replaced, its replacement)
MUTANTS = {
    "reduce-first-barrier": ("T block_reduce(", "__syncthreads(); /* the readers of an earlier call are done */", ""),
    "reduce-second-barrier": ("part[threadIdx.x / WARP_SIZE] = v;", "__syncthreads();", ""),
    "reduce-one-more": ("T r = part[0];", "i < BLOCK / WARP_SIZE", "i <= BLOCK / WARP_SIZE"),
    "attn-tile-barrier": ("attn_kernel(attn_args a)", "__syncthreads();", ""),
    "attn-warp-barrier": ("store_operand<T>(sp", "__syncwarp();", ""),
    "attn-one-key": ("bool has_form(", "j > i ||", "j >= i + 2 ||"),
    "attn-bwd-barrier": ("key_grad_kernel(attn_args a", "__syncthreads();", ""),
    "quad-one-more": ("void each_quad(", "cols - c < 4 ?", "cols - c < 3 ?"),
    "quad-stride": ("void each_quad(", "r += gridDim.y", "r += gridDim.y + 1"),
    "kv-one-token": ("void fake_quant_kv_bwd_kernel(", "t < (tile + 1) * TOKENS", "t < (tile + 1) * TOKENS - 1"),
}


def flatten(root, name, seen):
    """Returns the text of kernels/cuda/NAME with its headers of that folder inlined, each once, except port.h."""
    out = []
    for line in (root / "kernels/cuda" / name).read_text().splitlines():
        m = re.fullmatch(r'#include "kernels/cuda/((?!port\.h)\w+\.h)"', line)
        if m and m[1] not in ("cuda_fill.h",):
            if m[1] not in seen:
                seen.add(m[1])
                out.append(flatten(root, m[1], seen))
        else:
            out.append(line)
    return "\n".join(out)


def main():
    root, name, mutant, out = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3], pathlib.Path(sys.argv[4])
    anchor, old, new = MUTANTS[mutant]
    text = flatten(root, f"cuda_{name}.cu", set())
    begin = text.find(anchor)
    at = text.find(old, begin)
    if begin < 0 or at < 0 or at - begin > 3000:
        sys.exit(f"mutate.py: {mutant}: no '{old}' soon after '{anchor}' in cuda_{name}.cu: adapt the mutant")
    text = text[:at] + new + text[at + len(old):]
    out.write_text(re.sub(r"\bblock_reduce\b", "block_reduce_mutant", text))


def caught(command):
    """Returns whether the test ran its operation, and found failures of the device rather than of itself."""
    r = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"^([1-9]\d*) failures$", r.stdout, re.M)
    print(r.stdout[:600], r.stderr[:600], "caught" if found else "NOT CAUGHT", sep="\n")
    return r.returncode == 1 and found


if sys.argv[1] == "--caught":
    sys.exit(0 if caught(sys.argv[2:]) else 1)
main()
