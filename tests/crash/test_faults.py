#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Every call of the file layer and of the allocator fails, one at a time: test_faults.py WKVQ_FAULT [--calls N] [--allocs N]
[--seed S] [-j N] [--only JOB].

Each run must end in one of two ways: normally (an interrupted call was repeated, or the fault does not matter), or with
exit 1 and a message that names the cause. No incomplete file has a final name, and nothing leaks (in a build with
AddressSanitizer). Then the same command ends with the bytes of a run without faults. N limits the number of faults,
which are drawn with the seed; "all" uses every one."""
import argparse
import os
import pathlib
import random
import sys
import tempfile
import time

from crash_bench import SMALL, Job, Wrong, in_threads, make_model, scratch, settings, tiny

# The faults of each kind of call.
ERRORS = {
    "open": ("EIO", "EINTR", "ENOSPC"),
    "write": ("ENOSPC", "EIO", "EINTR", "short"),
    "fsync": ("EIO", "ENOSPC", "EINTR"),
    "close": ("EIO",),
    "rename": ("EIO", "ENOSPC"),
    "reserve": ("ENOSPC", "EIO", "EINTR"),
    "mmap": ("ENOMEM",),
    "names": ("EIO", "ENOSPC"),
    "opendir": ("EIO", "EMFILE"),
    "lock": ("EIO", "EINTR"),
    "thread": ("ENOMEM",),
}
TEXT = {"ENOSPC": "No space left", "EIO": "Input/output error", "ENOMEM": "emory",
        "EMFILE": "Too many open files", "EINTR": "Interrupted"}


def engine_jobs(wkvq, folder):
    """What is written for llama.cpp: a folded checkpoint in several files, and one file with all experts of a mixture."""
    wide, mixture = folder / "wide", folder / "mixture"
    heads = {"head_dim": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 300}
    make_model(wide, **heads)
    make_model(mixture, **heads, intermediate_size=32, model_type="mixtral", architectures=["MixtralForCausalLM"],
               num_local_experts=3, num_experts_per_tok=2)
    made = [Job("learned", [wkvq, "calibrate", wide, "--data", folder / "text.txt", "-o", "fold.state", "-j1",
                            *settings({**SMALL, "weights.bits": 16, "kv.target": "llama.cpp-q4_0", "crr.blocks": 0,
                                       "kv.group_size": 32})]),
            Job("rounded", [wkvq, "convert", mixture, "-o", "out", "-j1", *settings({"weights.group_size": 32})])]
    for job in made:
        learn(job, folder)
    return [Job("fold", [wkvq, "fold", wide, "--state", "fold.state", "-o", "out", "--shard", "100K"],
                {"fold.state": folder / "learned" / "fold.state"}),
            Job("gguf", [wkvq, "export", "artifact", "--format", "gguf", "--kv", "drop", "-o", "out.gguf", "-j1"],
                {"artifact": folder / "rounded" / "out"})]


def make_jobs(wkvq, folder):
    make_model(folder / "model")
    tiny.make_text(folder / "text.txt", 400)
    model, text = str(folder / "model"), str(folder / "text.txt")
    make = [wkvq, "quantize", model, "--data", text, "-o", "out", "--keep-state", *settings(SMALL)]
    jobs = [Job("quantize", [*make, "-j1"]),
            Job("disk", [wkvq, "calibrate", model, "--data", text, "-o", "out.state", "-j1",
                         "--memory", "100k", *settings(SMALL)]),
            Job("threads", [*make, "-j3"])]
    learn(jobs[0], folder)
    done = folder / "quantize"
    plain = folder / "plain"
    plain.mkdir()
    rounding = Job("rounding", [wkvq, "convert", model, "-o", "out", "-j1", *settings(
        {"weights.group_size": 16, "kv.group_size": 8})])
    learn(rounding, folder)
    jobs.append(Job("replace", [wkvq, "convert", model, "--state", "out.state", "-o", "out",
                                "--force", "-j1"],
                    {"out.state": done / "out.state", "out": folder / "rounding" / "out"}))
    few = {"refine.samples": 2, "refine.seqlen": 24, "refine.guard": 2}
    jobs.append(Job("refine", [wkvq, "refine", model, "artifact", "-o", "out", "--keep-state", "--data", text, "-j1",
                               *settings(few)], {"artifact": folder / "rounding" / "out"}))
    whole = Job("whole", [wkvq, "convert", model, "-o", "out", "-j1", *settings({"weights.group_size": 0})])
    learn(whole, folder)
    jobs.append(Job("export", [wkvq, "export", "artifact", "--format", "compressed-tensors", "-o", "out", "-j1"],
                    {"artifact": folder / "whole" / "out"}))
    jobs += engine_jobs(wkvq, folder)
    for job in jobs[1:]:
        learn(job, folder)
    unseen = [k for k in (*ERRORS, "alloc", "file") if not any(j.calls[k] for j in jobs)]
    if unseen:
        raise SystemExit(f"no call of {', '.join(unseen)} is caught: has its name changed (--wrap)?")
    return jobs


def learn(job, folder):
    (folder / job.name).mkdir()
    job.learn(folder / job.name)


def file_faults(job):
    kinds = ("thread",) if job.name == "threads" else ERRORS
    for kind in kinds:
        for n in range(1, job.calls[kind] + 1):
            yield from ((job, f"{kind}:{n}:{error}") for error in ERRORS[kind])
    if job.name != "threads":
        for n in range(1, job.calls["write"] + 1):
            yield job, f"write:{n}+:ENOSPC"
        for n in range(1, job.calls["file"] + 1):
            yield job, f"file:{n}+:EIO"


def check_message(fault, stderr):
    action = fault.split(":")[2]
    want = "out of memory" if fault.startswith("alloc") else TEXT.get(action)
    if fault.startswith("thread"):
        want = "cannot start thread"
    first = next((line for line in stderr.splitlines() if line.startswith("wkvq ")), None)
    if not first:
        raise Wrong("no message")
    if want not in first:
        raise Wrong(f"the message does not say '{want}'")
    if "bug in wkvq" in stderr:
        raise Wrong("the message calls it a bug in wkvq")


def try_fault(job, fault, root):
    with tempfile.TemporaryDirectory(dir=root) as name:
        folder = pathlib.Path(name)
        job.lay_out(folder)
        done = job.run(folder, fault=fault)
        stderr = done.stderr.decode(errors="replace")
        try:
            if done.returncode not in (0, 1) or "Sanitizer" in stderr:
                raise Wrong(f"exit {done.returncode}")
            if done.returncode:
                check_message(fault, stderr)
                job.check_remains(folder)
                job.check_end(folder)
            else:
                job.check_end(folder)
        except Wrong as e:
            return done.returncode, f"{job.name} {fault}: {e}\n{stderr}"
        return done.returncode, None


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("wkvq")
    parser.add_argument("--calls", default="150")
    parser.add_argument("--allocs", default="150")
    parser.add_argument("--seed", type=int, default=20240212)
    parser.add_argument("--only")
    parser.add_argument("--fault", help="one fault alone, by name")
    parser.add_argument("-j", type=int, default=os.cpu_count())
    a = parser.parse_args()
    rng = random.Random(a.seed)

    def draw(faults, limit):
        return faults if limit == "all" else rng.sample(faults, min(int(limit), len(faults)))

    with scratch() as name:
        folder = pathlib.Path(name)
        jobs = make_jobs(str(pathlib.Path(a.wkvq).resolve()), folder)
        jobs = [j for j in jobs if a.only in (None, j.name)]
        # beside a single file, a later run leaves what a writer could not remove
        calls = [f for j in jobs if j.name != "gguf" for f in file_faults(j)]
        allocs = [(j, f"alloc:{n}:ENOMEM") for j in jobs if j.name in ("quantize", "refine", "replace", "export", "fold", "gguf")
                  for n in range(1, j.calls["alloc"] + 1)]
        faults = [(j, a.fault) for j in jobs] if a.fault else draw(calls, a.calls) + draw(
            allocs, a.allocs)
        began = time.monotonic()
        results = in_threads(lambda f: try_fault(*f, folder), faults, a.j)
        seconds = time.monotonic() - began
    if len(faults) >= 20 and not any(status for status, _ in results):
        raise SystemExit("no fault has a consequence: is FAULT ignored?")
    bad = [problem for _, problem in results if problem]
    for problem in bad[:200]:
        print("FAIL", problem)
    print(f"{len(faults)} faults of {len(calls)} calls and {len(allocs)} allocations, "
          f"{sum(status == 0 for status, _ in results)} without consequence, {len(bad)} wrong, "
          f"{seconds:.0f} s, seed {a.seed}")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
