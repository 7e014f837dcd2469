#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Enforces the floors of docs/architecture.md: which file may include which.

    layers.py [ROOT]       check the tree
    layers.py --self-test  check that planted violations are found

Checked for every .c, .h, .cc, .cpp and .cu file: each quoted include names a file from the root of
the tree, on the same floor or one that its own may stand on; kernels/dev_ops.h and the
folders below kernels stay inside kernels (and its tests); no file is part of an include cycle;
no .c file is included; file names are unique."""
import os
import re
import sys
import tempfile

BELOW_CONVERT = ["calib/model", "data", "kernels", "kernels/base"]
# The rooms of convert, in the order of their libraries.
CONVERT = ["convert/format", "convert/checkpoint", "convert/output", "convert/artifact", "convert/fold", "convert/runtime",
           "convert/verify", "convert/export"]
ALL_BELOW_TOOLS = ["calib"] + BELOW_CONVERT + CONVERT
# The rooms of tools, likewise. No room includes a command.
TOOLS = ["tools/cli", "tools/recipe", "tools/state", "tools/pipeline", "tools/eval", "tools/eval/tasks", "tools/sweep",
         "tools/report", "tools/tune", "tools/bench", "tools/commands"]
# Floor: the floors it may include beside itself. A file is on the longest floor that its path
# begins with.
FLOORS = {
    "kernels/base": [],
    "data": ["kernels/base"],
    "kernels/simd": ["kernels/base"],
    "kernels": ["kernels/base", "kernels/simd"],
    "calib/model": ["kernels", "kernels/base"],
    "calib": ["calib/model", "kernels", "kernels/base"],
    "convert/format": BELOW_CONVERT,
    "convert/checkpoint": BELOW_CONVERT + ["convert/format"],
    "convert/output": BELOW_CONVERT + ["convert/format", "convert/checkpoint"],
    "convert/artifact": BELOW_CONVERT + ["convert/format", "convert/checkpoint", "convert/output"],
    "convert/fold": BELOW_CONVERT + ["convert/format", "convert/checkpoint", "convert/output", "convert/artifact"],
    "convert/runtime": BELOW_CONVERT + ["kernels/simd", "convert/format", "convert/checkpoint", "convert/artifact"],
    "convert/verify": BELOW_CONVERT + ["convert/format", "convert/checkpoint", "convert/artifact", "convert/runtime"],
    "convert/export": BELOW_CONVERT + ["convert/format", "convert/checkpoint", "convert/output", "convert/artifact"],
    "tools": ALL_BELOW_TOOLS + TOOLS,
    "tools/cli": ALL_BELOW_TOOLS,
    "tools/recipe": ALL_BELOW_TOOLS + ["tools/cli"],
    "tools/state": ALL_BELOW_TOOLS + ["tools/cli", "tools/recipe"],
    "tools/pipeline": ALL_BELOW_TOOLS + ["tools/cli", "tools/recipe", "tools/state"],
    "tools/eval": ALL_BELOW_TOOLS + ["tools/cli", "tools/recipe", "tools/state", "tools/pipeline"],
    "tools/eval/tasks": ALL_BELOW_TOOLS + ["tools/cli", "tools/recipe", "tools/state", "tools/pipeline", "tools/eval"],
    "tools/sweep": ALL_BELOW_TOOLS + ["tools/cli", "tools/recipe", "tools/state", "tools/pipeline", "tools/eval",
                                      "tools/eval/tasks"],
    "tools/report": ALL_BELOW_TOOLS + ["tools/recipe", "tools/eval", "tools/sweep"],
    "tools/tune": ALL_BELOW_TOOLS + ["tools/cli", "tools/recipe", "tools/pipeline", "tools/eval", "tools/sweep"],
    "tools/bench": ALL_BELOW_TOOLS + ["tools/cli"],
    "tools/commands": ALL_BELOW_TOOLS + [t for t in TOOLS if t != "tools/commands"],
    "tests": ALL_BELOW_TOOLS + ["kernels/simd", "tools"] + TOOLS,
}
# Private paths: a prefix, and the folders that may include it.
PRIVATE = {
    "kernels/dev_ops.h": ["kernels/", "tests/kernels/"],
    "kernels/cpu/": ["kernels/", "tests/kernels/"],
    "kernels/ref/": ["kernels/", "tests/kernels/"],
}
# The runtime has its own forward pass, so it may include only these headers of calib/model.
RUNTIME, RUNTIME_MODEL = "convert/runtime/", {"calib/model/arch.h", "calib/model/weights.h"}
GENERATED = {"config.h"}
SUFFIXES = (".c", ".h", ".cc", ".cpp", ".cu")
SHARED_NAMES = {"meson.build", "README.md", "__init__.py"}
PRIVATE_TO = re.compile(r"private to(?:\s|\*)+([a-z_]+(?:/[a-z_]+)*)", re.I)
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', re.M)


def floor_of(path):
    fits = [f for f in FLOORS if path.startswith(f + "/")]
    return max(fits, key=len) if fits else None


def files_of(root):
    for top in sorted({f.split("/")[0] for f in FLOORS}):
        for folder, _, names in os.walk(os.path.join(root, top)):
            for name in sorted(names):
                yield os.path.relpath(os.path.join(folder, name), root).replace(os.sep, "/")


def check_include(root, path, target):
    """Returns a sentence about what is wrong with one include, or None."""
    if target in GENERATED:
        return None
    if not os.path.isfile(os.path.join(root, target)):
        return f'{path}: "{target}" is not a file of the tree (paths start at its root)'
    kernel = path.startswith("kernels/cuda/emu/") and target.endswith(".cu")  # the same, for a host
    if not target.endswith(".h") and not kernel:
        return f'{path}: "{target}" is not a header'
    mine, theirs = floor_of(path), floor_of(target)
    if mine is None:
        return f"{path}: is on no floor"
    if theirs is None:
        return f'{path}: "{target}" is on no floor'
    if theirs != mine and theirs not in FLOORS[mine]:
        return f'{path}: floor {mine} may not include "{target}" of floor {theirs}'
    for prefix, users in PRIVATE.items():
        if target.startswith(prefix) and not path.startswith(tuple(users)):
            return f'{path}: "{target}" is private to {users[0]}'
    folder = private_folder(root, target)
    if folder and not path.startswith((folder + "/", "tests/")):
        return f'{path}: "{target}" says that it is private to {folder}'
    if path.startswith(RUNTIME) and theirs == "calib/model":
        if target not in RUNTIME_MODEL:
            return f'{path}: the runtime may not use "{target}": its forward is its own'
    return None


def private_folder(root, header):
    """Returns the folder that a header's first comment calls it private to, or None."""
    with open(os.path.join(root, header), encoding="utf-8") as f:
        found = PRIVATE_TO.search(f.read().split("*/")[0])
    if not found or not os.path.isdir(os.path.join(root, found[1])):
        return None
    return found[1]


def find_cycle(graph):
    """Returns one include cycle as a list of paths, or None."""
    done, stack = set(), []

    def visit(node):
        if node in stack:
            return stack[stack.index(node):] + [node]
        if node in done:
            return None
        stack.append(node)
        for target in graph.get(node, []):
            cycle = visit(target)
            if cycle:
                return cycle
        stack.pop()
        done.add(node)
        return None

    for node in sorted(graph):
        cycle = visit(node)
        if cycle:
            return cycle
    return None


def check(root):
    problems, graph, seen = [], {}, {}
    for path in files_of(root):
        name = path.rsplit("/", 1)[-1]
        if path.endswith(SUFFIXES) or name.endswith((".py", ".sh")):
            if name in seen and name not in SHARED_NAMES:
                problems.append(f"{path}: {seen[name]} has the same name")
            seen.setdefault(name, path)
        if not path.endswith(SUFFIXES):
            continue
        with open(os.path.join(root, path), encoding="utf-8") as f:
            graph[path] = INCLUDE.findall(f.read())
        for target in graph[path]:
            problem = check_include(root, path, target)
            if problem:
                problems.append(problem)
    cycle = find_cycle(graph)
    if cycle:
        problems.append("include cycle: " + " -> ".join(cycle))
    return len(graph), problems


# A small correct tree, and changes that break it: file, its text, a phrase of the complaint.
GOOD = {
    "kernels/base/error.h": "",
    "kernels/simd/simd.h": '#include "kernels/base/error.h"\n',
    "kernels/dev.h": '#include "kernels/base/error.h"\n',
    "kernels/dev_ops.h": '#include "kernels/dev.h"\n#include "config.h"\n',
    "kernels/ref/ref.h": '#include "kernels/dev_ops.h"\n',
    "data/json.h": '#include "kernels/base/error.h"\n#include <stdio.h>\n',
    "calib/model/block.h": '#include "kernels/dev.h"\n',
    "calib/model/scratch.h": "/* SPDX\n *\n * Working memory. Private to\n * calib/model. */\n",
    "calib/model/block.c": '#include "calib/model/scratch.h"\n',
    "calib/calib.h": '#include "calib/model/block.h"\n',
    "convert/format/bits.h": "",
    "convert/checkpoint/hf.h": '#include "convert/format/bits.h"\n',
    "convert/output/place.h": '#include "convert/format/bits.h"\n',
    "convert/artifact/write.h": '#include "convert/output/place.h"\n#include "convert/checkpoint/hf.h"\n',
    "convert/runtime/rt.h": '#include "data/json.h"\n',
    "convert/verify/verify.h": '#include "calib/model/block.h"\n#include "convert/runtime/rt.h"\n',
    "tools/main.c": '#include "calib/calib.h"\n  #  include "convert/verify/verify.h"\n',
    "tools/recipe/recipe.h": '#include "calib/calib.h"\n',
    "tools/pipeline/job.h": '#include "tools/recipe/recipe.h"\n',
    "tools/report/report.h": "",
    "tools/commands/commands.h": '#include "tools/report/report.h"\n',
    "tests/kernels/checkop.c": '#include "kernels/ref/ref.h"\n',
}
BAD = [
    ("kernels/base/mem.h", '#include "kernels/dev.h"\n', "floor kernels/base"),
    ("data/text.c", '#include "kernels/dev.h"\n', "floor data"),
    ("kernels/simd/vector.h", '#include "kernels/dev.h"\n', "floor kernels/simd"),
    ("calib/fast.c", '#include "kernels/simd/simd.h"\n', "floor calib"),
    ("kernels/loop.c", '#include "calib/model/block.h"\n', "floor kernels"),
    ("calib/model/attn.c", '#include "calib/calib.h"\n', "floor calib/model"),
    ("calib/io.c", '#include "data/json.h"\n', "floor calib"),
    ("convert/artifact/pack.c", '#include "calib/calib.h"\n', "floor convert/artifact"),
    ("convert/loose.c", '#include "data/json.h"\n', "on no floor"),
    ("convert/checkpoint/unpack.c", '#include "convert/artifact/write.h"\n', "floor convert/checkpoint"),
    ("convert/output/known.c", '#include "convert/artifact/write.h"\n', "floor convert/output"),
    ("convert/format/name.c", '#include "convert/checkpoint/hf.h"\n', "floor convert/format"),
    ("convert/fold/vector.c", '#include "kernels/simd/simd.h"\n', "floor convert/fold"),
    ("tools/fast.c", '#include "kernels/dev_ops.h"\n', "private"),
    ("tests/calib/inside.c", '#include "kernels/ref/ref.h"\n', "private"),
    ("tools/near.c", '#include "main.h"\n', "not a file of the tree"),
    ("tools/up.c", '#include "../kernels/dev.h"\n', "not a file of the tree"),
    ("calib/peek.c", '#include "calib/model/scratch.h"\n', "says that it is private"),
    ("convert/runtime/run.c", '#include "calib/model/block.h"\n', "its forward is its own"),
    ("convert/runtime/up.c", '#include "convert/verify/verify.h"\n', "floor convert/runtime may not"),
    ("convert/verify/fit.c", '#include "calib/calib.h"\n', "floor convert/verify"),
    ("convert/runtime/rt.h", '#include "convert/runtime/loop.h"\n', "cycle"),
    ("tools/code.c", '#include "tools/main.c"\n', "not a header"),
    ("tools/dev.h", "", "same name"),
    ("kernels/dev.h", '#include "kernels/ring.h"\n', "cycle"),
    ("convert/export/seal.c", '#include "convert/verify/verify.h"\n', "floor convert/export"),
    ("tools/cli/words.c", '#include "tools/recipe/recipe.h"\n', "floor tools/cli"),
    ("tools/state/resume.c", '#include "tools/pipeline/job.h"\n', "floor tools/state"),
    ("tools/bench/disk.c", '#include "tools/pipeline/job.h"\n', "floor tools/bench"),
    ("tools/tune/mean.c", '#include "tools/report/report.h"\n', "floor tools/tune"),
    ("tools/sweep/run.c", '#include "tools/commands/commands.h"\n', "floor tools/sweep"),
    ("convert/fold/peek.c", '#include "tools/recipe/recipe.h"\n', "floor convert/fold"),
    ("tools/recipe/recipe.h", '#include "tools/recipe/preset.h"\n', "cycle"),
]


def plant(root, path, text):
    full = os.path.join(root, path)
    os.makedirs(os.path.dirname(full), exist_ok=True)
    with open(full, "w", encoding="utf-8") as f:
        f.write(text)


def in_order(rooms):
    """Returns whether each room may include only rooms before it in the list, so that they cannot form a circle."""
    return all(rooms.index(t) < rooms.index(room) for room in rooms for t in FLOORS[room] if t in rooms)


def self_test():
    failed = 0
    for rooms in CONVERT, TOOLS:
        if not in_order(rooms):
            print(f"self-test: FLOORS lets a room of {rooms[0].split('/')[0]} include a later one")
            failed += 1
    for path, text, word in [(None, "", "")] + BAD:
        with tempfile.TemporaryDirectory() as root:
            for good, content in GOOD.items():
                plant(root, good, content)
            plant(root, "kernels/ring.h", '#include "kernels/dev.h"\n')
            plant(root, "convert/runtime/loop.h", '#include "convert/runtime/rt.h"\n')
            plant(root, "tools/recipe/preset.h", '#include "tools/recipe/recipe.h"\n')
            if path:
                plant(root, path, text)
            problems = check(root)[1]
            right = any(word in p for p in problems) if path else not problems
            if not right:
                print(f"self-test: {path or 'the good tree'}: {problems}")
                failed += 1
    print(f"layers.py: {len(BAD)} planted violations, {failed} not found")
    return failed != 0


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    root = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(__file__), "..")
    n, problems = check(root)
    for problem in problems:
        print(problem)
    print(f"layers.py: {n} files, {len(problems)} problems")
    return 1 if problems or not n else 0


if __name__ == "__main__":
    sys.exit(main())
