#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Every command under limits of address space, of data and of file size: test_ulimits.py WKVQ [TEST...].

A run completes its work, or ends with exit 1 or 2 and one message that names the cause. It never ends by a signal and
never hangs. The advice of a message is tried."""
import concurrent.futures
import json
import pathlib
import re
import shutil
import signal
import struct
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import harness
import tiny
from test_pipeline import wait_for_event

TIMEOUT = 60
MB = [50, 56, 60, 64, 68, 72, 76, 80, 90, 100, 110, 120, 130, 150, 180, 220, 260, 300, 350, 400, 460, 520, 700, 1000, 2000]
RECIPE = ["calibration.samples=2", "calibration.seqlen=24", "calibration.epochs=1", "weights.group_size=16",
          "kv.group_size=8", "crr.blocks=1"]
CAUSES = ("emory", "address space", "cannot start thread")


class Fixture(harness.Bench):
    timeout = TIMEOUT

    def __init__(self, wkvq, folder):
        super().__init__(wkvq, folder)
        tiny.make_model(self.path / "model", num_hidden_layers=2)
        tiny.make_text(self.path / "text.txt", 400)
        self.sets = [w for pair in RECIPE for w in ("--set", pair)]
        self.run("quantize", "model", "--data", "text.txt", "-o", "made", "--keep-state", "-j1", *self.sets)

    def call(self, args, want=0, env=None, limit=None):
        """limit: an argument of the shell's ulimit, as in "-v 300000"."""
        full = ["sh", "-c", f'ulimit {limit} && exec "$@"', "sh", *args] if limit else args
        return super().call(full, want, env)

    def commands(self, name):
        """The commands that compute, on two threads; outputs are named after `name`."""
        data = ["--data", "text.txt"]
        return {
            "convert": ["convert", "model", "-o", name + ".c", "-j2", "--set", "weights.group_size=16"],
            "quantize": ["quantize", "model", *data, "-o", name + ".q", "-j2", *self.sets],
            "bf16": ["calibrate", "model", *data, "-o", name + ".b", "-j2", *self.sets, "--set", "run.compute=bf16"],
            "gptq": ["calibrate", "model", *data, "-o", name + ".g", "-j2", *self.sets, "--set", "weights.method=gptq"],
            "verify": ["verify", "made", "--against", "model", "--state", "made.state", *data, "-j2"],
            "eval": ["eval", "made", *data, "--windows", "1", "--ctx", "32", "-j2"],
            "against": ["eval", "model", "--against", "made", *data, "--windows", "1", "--ctx", "32", "-j2"],
            "generate": ["generate", "made", "-p", "the", "-n", "4", "-j2"],
        }


def ends_well(done):
    """Returns what is wrong with the end of a limited run, or None."""
    if done.returncode == 0:
        return None
    if done.returncode == 127 and "loading shared libraries" in done.stderr:
        return None  # the dynamic linker's own message: the program never began
    if done.stderr.strip().startswith("libgomp: Out of memory"):
        return None  # said by a library of oneDNN's while it is loaded, before main()
    if done.returncode not in (1, 2):
        return f"exit {done.returncode}"
    first = next((line for line in done.stderr.splitlines() if line.startswith("wkvq ")), "")
    if not any(cause in first for cause in CAUSES):
        return "the message does not name memory"
    return None


def try_limit(f, name, args, mb):
    try:
        done = f.run(*args, want=None, limit=f"-v {1024 * mb}")
    except subprocess.TimeoutExpired:
        return False, f"{name} with {mb} MB: no end"
    problem = ends_well(done)
    return done.returncode == 0, problem and f"{name} with {mb} MB: {problem}\n{done.stderr}"


def test_address_space(f):
    runs = [(name, args, mb) for mb in MB for name, args in f.commands(f"v{mb}").items()]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda r: try_limit(f, *r), runs))
    wrong = [problem for _, problem in results if problem]
    assert not wrong, "\n".join(wrong)
    done = {(r[0], r[2]) for r, (good, _) in zip(runs, results) if good}
    for name in f.commands(""):
        assert (name, MB[0]) not in done, f"{name}: {MB[0]} MB do not limit anything"
        assert (name, MB[-1]) in done, f"{name} fails with {MB[-1]} MB"
    want = f.run("convert", "model", "-o", "free", "-j2", "--set", "weights.group_size=16") and files(f, "free")
    for name, mb in done:
        if name == "convert":
            assert files(f, f"v{mb}.c") == want, f"convert with {mb} MB: other bytes"
    assert not [p.name for p in f.path.iterdir() if ".tmp." in p.name]


def files(f, name):
    return {p.name: p.read_bytes() for p in (f.path / name).iterdir()}


def test_offered_threads_fit(f):
    """At some limit between too little for one thread and enough for two, the message suggests one thread."""
    for kb in range(200_000, 600_000, 20_000):
        args = [f.wkvq, "eval", "model", "--data", "text.txt", "--windows", "1", "--ctx", "32"]
        done = f.call([*args, "-j3"], want=None, limit=f"-v {kb}")
        offer = re.search(r"use (--threads \d)", done.stderr)
        if done.returncode and offer:
            assert "RLIMIT_AS (ulimit -v)" in done.stderr, done.stderr
            f.call([*args, *offer[1].split()], limit=f"-v {kb}")
            return
    raise AssertionError("no message offered fewer threads")


def test_data_limit(f):
    args = [f.wkvq, "eval", "made", "--data", "text.txt", "--windows", "1", "--ctx", "32", "-j2"]
    done = f.call(args, want=1, limit="-d 200000")
    assert "RLIMIT_DATA (ulimit -d)" in done.stderr, done.stderr


def test_plan_names_the_limit(f):
    args = [f.wkvq, "quantize", "model", "--data", "text.txt", "-o", "none", "-j1", *f.sets, "--plan", "--json"]
    free = json.loads(f.call(args).stdout)
    assert free["fits"] is True and free["threads"] == 1 and free["threads_limit"] == "run.threads", free
    for limit, name in (("-v 800000", "RLIMIT_AS (ulimit -v)"), ("-d 700000", "RLIMIT_DATA (ulimit -d)")):
        plan = json.loads(f.call(args, limit=limit).stdout)
        assert plan["memory_limit"] == name and 0 < plan["memory_available_bytes"] < 800e6, plan
        assert plan["memory_available_bytes"] < free["memory_available_bytes"], plan
    text = f.call([a for a in args if a != "--json"], limit="-v 800000").stdout
    assert "(limit: RLIMIT_AS (ulimit -v))" in text and "threads              1 (limit: run.threads)" in text, text


def test_what_does_not_fit_is_named(f):
    """Of calibration and refinement, a plan says of each that it does not fit if its memory is not there, and only then."""
    def plan(limit, *how):
        args = ["calibrate", "--plan", "--shape", "tinyllama-1.1b", "-j1", *harness.words(["refine.samples=64", "crr.blocks=0"])]
        return f.call([f.wkvq, *args, *how], limit=f"-v {limit // 1024}").stdout

    def refused(text):
        return [name for name in ("memory", "refinement")
                if "IT DOES NOT FIT" in re.search(rf"^{name} .*\n(?:  .*\n)*", text, re.M)[0]]

    limit = 8 << 30
    sizes = json.loads(plan(limit, "--json"))
    used = limit - sizes["memory_available_bytes"]
    if used > 2 << 30:
        raise harness.Skip("less than 6 GiB are available")
    calibration = sum(sizes[name] for name in ("weights_bytes", "activations_bytes", "parameters_bytes"))
    refinement = sum(sizes["refinement"][name] for name in ("device_bytes", "host_bytes"))
    assert 1.5 * calibration < refinement, sizes
    assert refused(plan(limit)) == []
    assert refused(plan(used + int(0.95 * refinement))) == ["refinement"]
    assert refused(plan(used + int(0.95 * calibration))) == ["memory", "refinement"]


def test_memory_is_checked_before_the_work(f):
    """A calibration that cannot fit is refused; with --memory it is tried anyway."""
    big = ["calibration.seqlen=256", "calibration.samples=2", "calibration.epochs=1", "weights.group_size=16",
           "kv.group_size=8", "crr.blocks=1"]
    if not (f.path / "wide").exists():
        tiny.make_model(f.path / "wide", num_hidden_layers=2, hidden_size=256, intermediate_size=1024,
                        num_attention_heads=32, num_key_value_heads=32)
    args = [f.wkvq, "calibrate", "wide", "--data", "text.txt", "-o", "wide.state", "-j1",
            *[w for pair in big for w in ("--set", pair)]]
    limit = 800_000
    plan = json.loads(f.call([*args, "--plan", "--json"], limit=f"-v {limit}").stdout)
    need = sum(plan[k] for k in ("weights_bytes", "activations_bytes", "parameters_bytes"))
    assert need > 16e6 and plan["fits"] is True, plan
    tight = f"-v {limit - (plan['memory_available_bytes'] - need * 3 // 4) // 1024}"
    done = f.call(args, want=2, limit=tight)
    assert "MB of memory, but only" in done.stderr and "(limit: RLIMIT_AS (ulimit -v))" in done.stderr, done.stderr
    assert not (f.path / "wide.state").exists()
    done = f.call([*args, "--set", "run.compute=f32"], want=2, limit=tight)
    assert "set run.compute to bf16, or raise the limit" in done.stderr, done.stderr
    text = f.call([*args, "--plan"], limit=tight).stdout
    assert "IT DOES NOT FIT" in text, text
    tried = f.call([*args, "--memory", "8G"], want=None, limit=tight)
    assert ends_well(tried) is None, tried.stderr
    f.call(args)


def test_file_size_limit(f):
    """A limit on file size makes the write fail, and nothing half-written remains."""
    for name, blocks in (("convert", 20), ("quantize", 4), ("quantize", 20)):
        args = f.commands("size")[name]
        done = f.run(*args, want=1, limit=f"-f {blocks}")
        out = args[args.index("-o") + 1]
        said = rf"{out}(\.state)?/[a-z0-9.-]*: cannot write: File too large; files may have at most {512 * blocks} bytes"
        assert re.search(said, done.stderr) and ".tmp." not in done.stderr, done.stderr
        assert not (f.path / out).exists() and not list(f.path.rglob("*.tmp.*")), sorted(f.path.rglob("*"))
        f.run(*args)
        shutil.rmtree(f.path / out)


def test_claimed_experts(f):
    """Memory follows the files of a checkpoint, whatever its config.json claims."""
    tiny.make_model(f.path / "claims", model_type="qwen3_moe", architectures=["Qwen3MoeForCausalLM"], num_experts=4,
                    num_experts_per_tok=2, moe_intermediate_size=16)
    config = f.path / "claims" / "config.json"
    claimed = {**json.loads(config.read_text()), "num_experts": 1024, "num_hidden_layers": 4096}
    config.write_text(json.dumps(claimed))
    done = f.run("inspect", "claims", want=2, limit="-v 800000")
    assert "mlp.experts.4.gate_proj.weight is missing" in done.stderr, done.stderr


TEXT = 6144  # what a file takes at most beside its tensors, as tools/state/state_block.h says
POSITION = 32  # of a refinement: saved beside what its plan counts
CALIBRATING = '"epoch", "block": 1'
REFINING = '"refine", "step": 20'


def tensor_bytes(path):
    """The bytes of the tensors in a file of a state."""
    with open(path, "rb") as file:
        header = struct.unpack("<Q", file.read(8))[0]
    assert header + 8 < TEXT, path
    return path.stat().st_size - 8 - header


def stop_at(f, args, event):
    """Runs a calibration until the event, and interrupts it. Returns the bytes of what it saved of its unfinished work."""
    log = f.path / "size.json"
    log.unlink(missing_ok=True)
    process = subprocess.Popen([*args, "--log-json", str(log)], cwd=f.path, stderr=subprocess.DEVNULL)
    wait_for_event(log, event, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(TIMEOUT) == 130, process.returncode
    (partial,) = (f.path / "size.state").glob("partial-*")
    return tensor_bytes(partial)


def total(folder):
    return sum(p.stat().st_size for p in folder.iterdir())


def check_planned_bytes(f, sets, *events):
    """The planned bytes of a state are those of all its blocks and of three unfinished ones, by its formats."""
    state = f.path / "size.state"
    args = [f.wkvq, "calibrate", "model", "--data", "text.txt", "-o", "size.state", "-j1", *f.sets, *harness.words(sets)]
    planned = json.loads(f.call([*args, "--plan", "--json"]).stdout)["state_bytes"]
    partial = 0
    for event in events:
        saved = stop_at(f, args, event) - (POSITION if event == REFINING else 0)
        partial = max(partial, saved)
        assert total(state) <= planned, (sets, event, total(state), planned)
    f.call(args)
    blocks = [tensor_bytes(p) + TEXT for p in [*state.glob("block-*"), *state.glob("refined-*")]]
    assert len(blocks) == 2 * len(events), blocks
    assert planned == sum(blocks) + 3 * (partial + TEXT), (sets, planned, blocks, partial)
    assert total(state) <= planned, (sets, total(state), planned)
    shutil.rmtree(state)


def test_bytes_of_a_state_are_those_of_its_plan(f):
    long = "calibration.epochs=40"  # so that a run is stopped in the middle
    learned, mixed = "weights.round=learned", "weights.mixed=v_proj=16"
    for sets in ([], ["weights.method=gptq"], [learned], [mixed], [learned, mixed], [learned, "kv.learn=false"],
                 ["weights.bits=16"], ["kv.bits=16"]):
        check_planned_bytes(f, [long, *sets], CALIBRATING)
    refine = ["refine.samples=16", "refine.seqlen=24", "refine.guard=2", "refine.batch=1", "refine.epochs=8"]
    check_planned_bytes(f, [long, *refine], CALIBRATING, REFINING)


if __name__ == "__main__":
    harness.main(globals(), Fixture)
