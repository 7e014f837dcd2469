#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""`wkvq calibrate --device cuda` without a GPU, with an old driver, too little memory, or a GPU that
fails in the middle: test_cuda.py WKVQ_EMU, in which `cuda` is the emulation."""
import json
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import harness
import tiny

SETTINGS = ["calibration.samples=2", "calibration.seqlen=12", "calibration.epochs=2",
            "crr.blocks=1", "weights.group_size=16"]


class Folder(harness.Bench):
    def __init__(self, wkvq, folder):
        super().__init__(wkvq, folder)
        tiny.make_model(self.path / "model", num_hidden_layers=2)
        tiny.make_text(self.path / "text.txt", 600)

    def calibrate(self, state, device, *more, **card):
        """Runs wkvq; card: the emulated GPU, as EMU_... in the environment."""
        env = {k: v for k, v in os.environ.items() if not k.startswith("EMU_")}
        env.update({"EMU_NAME": "cuda"}, **{f"EMU_{k}": str(v) for k, v in card.items()})
        keys = [w for s in SETTINGS for w in ("--set", s)]
        return self.run("calibrate", "model", "--data", "text.txt", "-o", state, "--device", device, *keys, *more, want=None,
                        env=env)

    def manifest(self, state):
        return json.loads((self.path / state / "manifest.json").read_text())


def expect(done, status, *texts):
    assert done.returncode == status, (done.returncode, done.stderr)
    for text in texts:
        assert text in done.stderr, (text, done.stderr)


def test_cards_that_do_not_do(f):
    expect(f.calibrate("none", "cuda", DEVICES=0), 2, "no NVIDIA GPU found", "use --device cpu")
    expect(f.calibrate("none", "cuda", DRIVER=12020), 2, "the driver has CUDA 12.2",
           "install a newer driver, or use --device cpu")
    expect(f.calibrate("none", "cuda", MEMORY=1 << 19), 2, "GPU memory", "are available",
           "use --device cpu")
    assert not (f.path / "none").exists(), "a refused run has left a state"


def test_heads_that_are_too_wide(f):
    """A plan, a calibration and an evaluation say so before they begin."""
    tiny.make_model(f.path / "broad", num_hidden_layers=1, head_dim=256)
    for command in (["calibrate", "broad", "-o", "none"], ["calibrate", "broad", "-o", "none", "--plan"],
                    ["eval", "broad", "--ctx", "12"]):
        keys = [w for s in SETTINGS for w in ("--set", s)] if command[0] == "calibrate" else []
        done = f.run(*command, "--data", "text.txt", "--device", "cuda", *keys, want=None,
                     env={**os.environ, "EMU_NAME": "cuda"})
        expect(done, 2, "heads of 256 channels: attention on device cuda-emu has at most 128; set run.device to cpu")
        assert not (f.path / "none").exists(), done.stderr


def test_caches_of_other_engines(f):
    """cuda has no kernel for them; eval and the calibration say so before they begin."""
    tiny.make_model(f.path / "wide", num_hidden_layers=1, head_dim=64)
    keys = [w for s in [*SETTINGS, "kv.target=llama.cpp-q4_0"] for w in ("--set", s)]
    for command in (["calibrate", "wide", "-o", "none"], ["eval", "wide", "--simulate", "rtn", "--ctx", "12"]):
        done = f.run(*command, "--data", "text.txt", "--device", "cuda", *keys, want=None,
                     env={**os.environ, "EMU_NAME": "cuda"})
        expect(done, 2, "kv.target: the device cuda-emu does not simulate the cache of another engine")
        assert not (f.path / "none").exists(), done.stderr


def test_plan_fits_or_says_so(f):
    done = f.calibrate("none", "cuda", "--plan", "--json", MEMORY=1 << 19)
    expect(done, 0)
    assert json.loads(done.stdout)["fits"] is False, done.stdout
    done = f.calibrate("none", "cuda", "--plan", "--json")
    expect(done, 0)
    plan = json.loads(done.stdout)
    assert plan["fits"] is True and plan["streams"] == "device", plan
    assert plan["seconds"] > 0, plan


def test_streams_on_the_host(f):
    """They get what the copy of the block in work leaves of the budget."""
    def plan(*more, **card):
        done = f.calibrate("none", "cuda", "--plan", "--json", "--set", "calibration.samples=8", *more, **card)
        expect(done, 0)
        return json.loads(done.stdout)

    all_on_card = plan()
    card = (1 << 34) - all_on_card["device_usable_bytes"] + all_on_card["device_bytes"] - 1
    on_host = plan("--memory", "1G", MEMORY=card)
    assert on_host["streams"] == "memory" and on_host["host_bytes"] > on_host["stream_bytes"], on_host
    for budget, place in ((0, "memory"), (-1, "disk")):
        tight = plan("--memory", str(int(on_host["host_bytes"]) + budget), MEMORY=card)
        assert tight["streams"] == place, (budget, tight)


def test_cpu_goes_on_where_a_gpu_failed(f):
    """Fails at calls of a complete run, late enough that a block or a part of one is saved."""
    kept = set()
    for call in (200, 300, 400, 500, 600, 700, 900):
        state = f"failed-{call}"
        done = f.calibrate(state, "cuda", FAIL_AT=call)
        expect(done, 1, "device cuda", "an illegal memory access was encountered",
               "Use --device cpu; a calibration continues from its saved state")
        before = f.manifest(state)
        kept.add((len(before["done"]), before["partial"] is not None))
        if before["partial"]:
            assert before["partial"]["device"] == "cuda-emu", before["partial"]
        expect(f.calibrate(state, "cpu"), 0)
        after = f.manifest(state)
        assert [b["device"] for b in after["done"]] == \
            ["cuda-emu"] * len(before["done"]) + ["cpu"] * (2 - len(before["done"])), after["done"]
        assert after["identity"]["config"]["run"]["compute"] == "bf16", after["identity"]
        # and is done on any device
        expect(f.calibrate(state, "cuda"), 0)
    print("kept (blocks, partial):", sorted(kept))
    assert any(blocks for blocks, _ in kept) and any(partial for _, partial in kept), kept


SWEEP = """
base: {calibration: {samples: 2, seqlen: 12, epochs: 1}, weights.group_size: 16, crr.blocks: 1, run.device: cuda}
cells: [{name: a}, {name: b, set: {kv.method: token}}]
eval: {data: text.txt, windows: 1, ctx: 12}
"""


def test_cells_side_by_side_share_the_gpu(f):
    """Half of a card of 1.5 GiB is less than a context takes. Each of two cards is large enough for one cell."""
    (f.path / "sweep.yaml").write_text(SWEEP)
    for parallel, memory, cards, status in ((2, 3 << 29, "0", 1), (2, 3 << 29, "0,1", 0), (1, 3 << 29, "0", 0), (2, 1 << 32, "0", 0)):
        env = {**os.environ, "EMU_NAME": "cuda", "EMU_MEMORY": str(memory), "CUDA_VISIBLE_DEVICES": cards}
        done = f.run("sweep", "sweep.yaml", "--model", "model", "--data", "text.txt", "-q", "--parallel", str(parallel),
                     "-o", f"sweep-{parallel}-{memory}-{cards}", want=None, env=env)
        assert (done.returncode != 0) == (status != 0), (parallel, memory, done.stderr)
        assert ("but only 0 B are available" in done.stderr) == (status != 0), (parallel, memory, done.stderr)


def zeroshot(f, device, **card):
    env = {**os.environ, "EMU_NAME": "cuda", **{f"EMU_{k}": str(v) for k, v in card.items()}}
    return f.run("eval", "model", "--task", "zeroshot", "--data", "q.jsonl", "--ctx", "64", "--simulate", "rtn", "--set",
                 "weights.group_size=16", "-o", device + ".jsonl", "--device", device, want=None, env=env)


def test_zeroshot_on_the_gpu(f):
    """The simulation of tasks runs on the device that --device names, here in f32 like the CPU's."""
    rows = [{"goal": "Boil" + " it" * i, "sol1": "use water", "sol2": "use a" + " pan" * i, "label": 0}
            for i in range(4)]
    (f.path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    expect(zeroshot(f, "cuda", FAIL_AT=100), 1, "device cuda", "an illegal memory access was encountered")
    likelihoods = []
    for device in ("cpu", "cuda"):
        expect(zeroshot(f, device), 0)
        lines = (f.path / (device + ".jsonl")).read_text().splitlines()
        likelihoods += [[x for line in lines for x in json.loads(line)["ll"]]]
    for a, b in zip(*likelihoods, strict=True):
        assert abs(a - b) <= 1e-3, likelihoods


if __name__ == "__main__":
    harness.main(globals(), Folder)
