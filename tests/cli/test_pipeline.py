#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The main job on a tiny model, end to end: test_pipeline.py WKVQ [TEST...].

Repeated, interrupted and resumed, or with streams on disk: artifact and state must have the same
bytes. (Killed: tests/crash.)"""
import json
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import harness
import tiny

RECIPE = ["calibration.samples=24", "calibration.seqlen=96", "calibration.epochs=5",
          "weights.group_size=12", "kv.group_size=8", "crr.blocks=1"]


class Fixture(harness.Bench):
    decode = False

    def __init__(self, wkvq, folder):
        super().__init__(wkvq, folder)
        tiny.make_model(self.path / "model", num_hidden_layers=4)
        tiny.make_text(self.path / "text.txt", 3000)

    def command(self, out, *more, recipe=RECIPE):
        sets = [w for pair in recipe for w in ("--set", pair)]
        return [self.wkvq, "quantize", "model", "--data", "text.txt", "-o", out, "--keep-state",
                "-j1", *sets, *more]

    def start(self, args):
        return subprocess.Popen(args, cwd=self.path, stdout=subprocess.DEVNULL,
                                stderr=subprocess.DEVNULL)

    def files(self, name):
        """Returns the bytes of every file of an output folder."""
        folder = self.path / name
        return {str(f.relative_to(folder)): f.read_bytes()
                for f in sorted(folder.rglob("*")) if f.is_file()}

    def reference(self):
        if not (self.path / "reference").exists():
            self.call(self.command("reference"))
        return self.files("reference"), self.files("reference.state")

    def expect_reference(self, out, what):
        artifact, state = self.reference()
        for name, want in ((out, artifact), (out + ".state", state)):
            got = self.files(name)
            if got.keys() != want.keys():
                raise AssertionError(f"{what}: {name} holds {sorted(got)}, not {sorted(want)}")
            for file, data in want.items():
                if got[file] != data:
                    raise AssertionError(f"{what}: {name}/{file} differs")
        shutil.rmtree(self.path / out)
        shutil.rmtree(self.path / (out + ".state"))


def wait_for_event(log, event, process):
    """Waits until the log has a line with that event, or the process ends."""
    for _ in range(6000):
        if log.exists() and f'"event": {event}' in log.read_text():
            return
        if process.poll() is not None:
            return
        time.sleep(0.005)
    raise AssertionError(f"no {event} within 30 s")


def test_twice_gives_the_same_bytes(f):
    f.call(f.command("again"))
    f.expect_reference("again", "second run")


def test_calibration_gains(f):
    f.reference()
    done = json.loads((f.path / "reference.state" / "manifest.json").read_text())["done"]
    assert len(done) == 4, done
    assert all(b["best_loss"] <= b["start_loss"] for b in done), done
    assert sum(b["best_epoch"] > 0 for b in done) >= 2, done


def test_interrupted_and_resumed(f):
    f.reference()
    for sig in (signal.SIGINT, signal.SIGTERM):
        log = f.path / "events.json"
        log.unlink(missing_ok=True)
        process = f.start(f.command("stopped", "--log-json", str(log)))
        wait_for_event(log, '"epoch", "block": 1', process)
        process.send_signal(sig)
        assert process.wait(60) == 130, process.returncode
        manifest = json.loads((f.path / "stopped.state" / "manifest.json").read_text())
        assert len(manifest["done"]) < 4, "interrupted too late to show anything"
        assert manifest["partial"], "no block in work was saved"
        f.call(f.command("stopped"))
        f.expect_reference("stopped", f"after {sig.name}")


def test_a_state_without_measured_samples_resumes(f):
    """Before calibration.eval_samples existed, all samples were measured. A state from then resumes that way,
    where the run does not name a number."""
    f.call(f.command("all", "--set", "calibration.eval_samples=0"))
    _, reference = f.reference()
    assert b"eval_samples" in reference["manifest.json"] and b"eval_samples" not in f.files("all.state")["manifest.json"]
    log = f.path / "old.json"
    process = f.start(f.command("old", "--set", "calibration.eval_samples=0", "--log-json", str(log)))
    wait_for_event(log, '"epoch", "block": 1', process)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, process.returncode
    done = f.call(f.command("old", "--set", "calibration.eval_samples=16"), want=2)
    assert b"config.calibration.eval_samples is 0 in the state and 16 in this run" in done.stderr, done.stderr
    f.call(f.command("old"))
    assert f.files("old") == f.files("all") != f.files("reference")
    assert f.files("old.state") == f.files("all.state")


def test_streams_on_disk(f):
    plan = f.call(f.command("disk", "--memory", "100k", "--plan", "--json"))
    assert json.loads(plan.stdout)["streams_on_disk"] is True, plan.stdout
    f.call(f.command("disk", "--memory", "100k"))
    f.expect_reference("disk", "streams on disk")


def test_another_configuration_is_refused(f):
    f.reference()
    other = [*RECIPE, "crr.loss=mse"]
    done = f.call(f.command("reference", recipe=other), want=2)
    assert b'config.crr.loss is "mae" in the state and "mse" in this run' in done.stderr, done.stderr
    f.reference()


def test_two_processes_on_one_state(f):
    log = f.path / "two.json"
    first = f.start(f.command("two", "--log-json", str(log)))
    wait_for_event(log, '"step"', first)
    done = f.call(f.command("two"), want=2)
    assert b"another process works on this state" in done.stderr, done.stderr
    assert first.wait(120) == 0
    f.expect_reference("two", "beside another process")


def test_state_goes_when_verified(f):
    args = [a for a in f.command("gone") if a != "--keep-state"]
    f.call(args)
    assert not (f.path / "gone.state").exists()
    done = f.call(args, want=2)
    assert b"--force" in done.stderr
    f.call([*args, "--force"])
    assert f.files("gone") == f.reference()[0]


def test_stages_alone_give_the_same_artifact(f):
    artifact, state = f.reference()
    sets = [w for pair in RECIPE for w in ("--set", pair)]
    f.run("calibrate", "model", "--data", "text.txt", "-o", "alone.state", "-j1", *sets)
    f.run("convert", "model", "--state", "alone.state", "-o", "alone", "-j1")
    assert f.files("alone.state") == state
    assert f.files("alone") == artifact
    f.run("verify", "alone", "--against", "model")


def test_gptq(f):
    """Codes that do not follow from the weights: the state has them, the artifact holds them,
    and a resumed run chooses the same."""
    recipe = [*RECIPE, "weights.method=gptq", "weights.act_order=true", "calibration.epochs=2"]
    for out in ("gptq", "gptq-again"):
        log = f.path / (out + ".json")
        process = f.start(f.command(out, "--log-json", str(log), recipe=recipe))
        if out == "gptq-again":
            wait_for_event(log, '"epoch", "block": 1', process)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130, process.returncode
            process = f.start(f.command(out, recipe=recipe))
        assert process.wait(120) == 0
    assert f.files("gptq") == f.files("gptq-again")
    assert f.files("gptq.state") == f.files("gptq-again.state")
    args = [f.wkvq, "verify", "gptq", "--against", "model", "--data", "text.txt", "--json"]
    with_state = json.loads(f.call([*args, "--state", "gptq.state"]).stdout)
    assert with_state["passed"] and with_state["weights_unchecked"] == 0, with_state
    alone = json.loads(f.call(args).stdout)
    linears = 4 * (32 * 32 + 2 * 16 * 32 + 32 * 32 + 3 * 32 * 48)
    assert alone["passed"] and alone["weights_unchecked"] == linears, alone
    assert alone["weights_compared"] + linears == with_state["weights_compared"]
    assert not f.path.joinpath("nearest").exists()
    done = f.run("convert", "model", "--set", "weights.method=gptq", "-o", "nearest", want=2)
    assert b"gptq needs calibration" in done.stderr, done.stderr


def test_mixed_cache(f):
    """Formats of keys and values that differ by layer, one of them unquantized, from calibration to
    decode; nothing learns in block 1. Stopped and resumed: the same bytes."""
    mix = "k=5:4, 0.v=3, 1.k=16, 1.v=16, 3.v=8"
    recipe = [*RECIPE, "weights.bits=16", "kv.mixed=" + mix]
    for out in ("mixed", "mixed-again"):
        log = f.path / (out + ".json")
        process = f.start(f.command(out, "--log-json", str(log), recipe=recipe))
        if out == "mixed-again":
            wait_for_event(log, '"epoch", "block": 2', process)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130, process.returncode
            process = f.start(f.command(out, recipe=recipe))
        assert process.wait(120) == 0
    assert f.files("mixed") == f.files("mixed-again")
    assert f.files("mixed.state") == f.files("mixed-again.state")
    events = [json.loads(line) for line in (f.path / "mixed.json").read_text().splitlines()]
    shares = [e["done"] for e in events if "done" in e]
    assert shares == sorted(shares) and 0.99 < shares[-1] <= 1, "progress does not end at one"
    assert {e["block"] for e in events if e["event"] == "epoch"} == {0, 2, 3}, "what learns"
    spec = json.loads((f.path / "mixed/config.json").read_text())["quantization_config"]
    assert spec["format_version"] == 3 and spec["kv"]["mixed"] == "k=5:4, 1.k=16, 0.v=3, 1.v=16, 3.v=8"
    raw = (f.path / "mixed/model.safetensors").read_bytes()
    n = int.from_bytes(raw[:8], "little")
    for name, alone in (("1.self_attn.k_scale", True), ("1.self_attn.v_scale", True), ("0.self_attn.k_scale", False)):
        at, end = json.loads(raw[8:8 + n])["model.layers." + name]["data_offsets"]
        values = struct.unpack("<16f", raw[8 + n + at:8 + n + end])
        assert (set(values) == {1.0}) == alone, (name, values)
    # heads of 8, by docs/artifact.md: bytes of codes, and 4 a group; base: 4 bits, one group
    heads = [(5 + 8) + (3 + 4), 16 + 16, (5 + 8) + (4 + 4), (5 + 8) + (8 + 4)]
    seen = json.loads(f.run("inspect", "mixed", "--json", "--length", "10").stdout)
    assert abs(seen["kv_bits"] - sum(heads) * 8 / (4 * 2 * 8)) < 1e-9, seen["kv_bits"]
    assert seen["memory"]["kv_bytes"] == 10 * 2 * sum(heads), seen["memory"]
    done = json.loads(f.run("verify", "mixed", "--against", "model", "--data", "text.txt",
                            "--state", "mixed.state", "--json").stdout)
    assert done["passed"] and done["weights_unchecked"] == 0, done
    ppl = [f.wkvq, "eval", "mixed", "--data", "text.txt", "--ctx", "64", "--windows", "3", "--json"]
    simulated, decoded = (json.loads(f.call([*ppl, *more]).stdout) for more in ([], ["--decode"]))
    for row in (simulated, decoded): # as inspect measures the artifact, not the bits of its codes
        assert all(abs(row[key] - seen[key]) < 1e-8 for key in ("weight_bits", "kv_bits")), (row, seen)
    assert abs(simulated["nll"] - decoded["nll"]) <= 2e-3, (simulated, decoded)
    full = json.loads(f.call([*ppl, "--kv-bits", "16"]).stdout)
    assert full["kv_bits"] == 16 and abs(full["nll"] - simulated["nll"]) > 1e-5, (full, simulated)
    other = [*recipe[:-1], "kv.mixed=" + mix.replace("0.v=3", "0.v=4")]
    done = f.call(f.command("mixed", recipe=other), want=2)
    assert b"config.kv.mixed is" in done.stderr, done.stderr


def packed_bits(rows, cols, bits, group):
    """Bits of a packed projection: codes, scales and zeros, counted in bytes a row."""
    groups = -(-cols // group)
    return 8 * rows * (-(-cols * bits // 8) + 2 * groups + -(-groups * bits // 8))


def test_mixed_weights(f):
    """Projections of several formats, one unquantized: stopped and resumed, verified, evaluated by
    the runtime and in simulation, from the artifact and from the state."""
    mixed = "v_proj=8:8, 3.q_proj=16, up_proj=3, 0-1.down_proj=5:0"
    recipe = [*RECIPE, "weights.mixed= 0-1.down_proj=5:0,up_proj=3,v_proj=8:8,3.q_proj=16",
              "weights.round=learned", "weights.init=search", "calibration.epochs=2"]
    f.call(f.command("mixed-weights", recipe=recipe))
    log = f.path / "mixed-weights.json"
    process = f.start(f.command("mixed-weights-again", "--log-json", str(log), recipe=recipe))
    wait_for_event(log, '"epoch", "block": 1', process)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, process.returncode
    f.call(f.command("mixed-weights-again", recipe=recipe))
    assert f.files("mixed-weights") == f.files("mixed-weights-again")
    assert f.files("mixed-weights.state") == f.files("mixed-weights-again.state")
    done = f.call(f.command("mixed-weights", recipe=[r for r in recipe if "mixed" not in r]), want=2)
    assert b'config.weights.mixed is "3.q_proj=16, v_proj=8:8' in done.stderr, done.stderr
    assert b"in the state and nothing in this run" in done.stderr, done.stderr
    f.reference()
    done = f.call(f.command("reference", recipe=[*RECIPE, "weights.mixed=v_proj=5"]), want=2)
    assert b'config.weights.mixed is nothing in the state and "v_proj=5" in this run' in done.stderr, done.stderr

    what = json.loads(f.run("inspect", "mixed-weights", "--json").stdout)
    spec = what["quantization"]
    assert spec["format_version"] == 3, spec
    rules = set(mixed.split(", "))
    assert set(spec["weights"]["mixed"].split(", ")) == rules, spec
    bits = 0
    for layer in range(4):
        bits += (32 * 32 * 32 if layer == 3 else packed_bits(32, 32, 4, 12))  # q, F32 as it was
        bits += packed_bits(16, 32, 4, 12) + packed_bits(16, 32, 8, 8)        # k, v
        bits += packed_bits(32, 32, 4, 12)                                    # o
        bits += packed_bits(48, 32, 4, 12) + packed_bits(48, 32, 3, 12)       # gate, up
        bits += packed_bits(32, 48, 5, 48) if layer < 2 else packed_bits(32, 48, 4, 12)
    assert what["quantized_weights"] == 4 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48)
    assert 8 * what["quantized_bytes"] == bits, (what, bits)
    assert abs(what["weight_bits"] - bits / what["quantized_weights"]) < 1e-6, (what, bits)

    args = ["--data", "text.txt", "--json"]
    report = json.loads(f.run("verify", "mixed-weights", "--against", "model", "--state",
                              "mixed-weights.state", *args).stdout)
    assert report["passed"] and report["weights_unchecked"] == 0, report
    args = ["--ctx", "64", "--windows", "3", *args]
    nll = [json.loads(f.run("eval", *way, *args).stdout)["nll"]
           for way in (["mixed-weights"], ["mixed-weights", "--decode"], ["model", "--state", "mixed-weights.state"])]
    assert max(nll) - min(nll) <= 2e-3, nll


def test_head(f):
    """A quantized head, tied and not: the same bytes twice, with any number of threads, verified,
    evaluated by the runtime and in simulation, from the artifact, the checkpoint and the state."""
    for tied in (True, False):
        model, out = f"head-model-{tied}", f"head-{tied}"
        changes = {"num_hidden_layers": 2, "tie_word_embeddings": tied}
        tiny.make_model(f.path / model, **changes)
        kept = [t for t in tiny.model_tensors({**tiny.CONFIG, **changes}, 1) if not tied or t[0] != "lm_head.weight"]
        tiny.write_safetensors(f.path / model / "model.safetensors", kept)
        sets = ["--set", "head.bits=6", "--set", "head.group_size=12", "--set", "kv.bits=16"]
        for name, threads in ((out, "-j1"), (out + "-again", "-j2")):
            f.run("convert", model, "-o", name, threads, *sets)
        assert f.files(out) == f.files(out + "-again")
        what = json.loads(f.run("inspect", out, "--json").stdout)
        vocab, width = what["model"]["vocab_size"], what["model"]["hidden_size"]
        bits = packed_bits(vocab, width, 6, 12) * (1 if tied else 2)
        assert 8 * what["head_bytes"] == bits, (what, bits)
        assert what["quantization"]["format_version"] == 5, what
        assert what["quantization"]["head"] == {"bits": 6, "group_size": 12}, what
        args = ["--data", "text.txt", "--json"]
        report = json.loads(f.run("verify", out, "--against", model, *args).stdout)
        assert report["passed"], report
        args = ["--ctx", "64", "--windows", "3", *args]
        rtn = ["--simulate", "rtn", *sets]
        nll = [json.loads(f.run("eval", *way, *args).stdout)["nll"]
               for way in ([out], [out, "--decode"], [model, *rtn])]
        assert max(nll) - min(nll) <= 1e-4, nll
        plain = json.loads(f.run("eval", model, *rtn[:2], "--set", "kv.bits=16", *args).stdout)["nll"]
        assert abs(plain - nll[0]) > 1e-4, (plain, nll)
        f.run("generate", out, "-p", "a", "-n", "4")
    recipe = [*RECIPE, "head.bits=4", "calibration.epochs=1"]
    f.call(f.command("head", recipe=recipe))
    args = ["--ctx", "64", "--windows", "3", "--data", "text.txt", "--json"]
    nll = [json.loads(f.run("eval", *way, *args).stdout)["nll"]
           for way in (["head"], ["model", "--state", "head.state"])]
    assert abs(nll[0] - nll[1]) <= 1e-5, nll
    done = f.call(f.command("head", recipe=[r for r in recipe if "head" not in r]), want=2)
    assert b"config.head.bits is 4 in the state and 16 in this run" in done.stderr, done.stderr


def test_machine_output(f):
    log = f.path / "machine.json"
    done = f.call(f.command("machine", "--json", "--quiet", "--log-json", str(log)))
    result = json.loads(done.stdout)
    assert result["passed"] is True and result["weight_bits"] > 4, result
    assert not done.stderr, done.stderr
    events = [json.loads(line) for line in log.read_text().splitlines()]
    kinds = {e["event"] for e in events}
    assert {"phase", "step", "epoch", "block"} <= kinds, kinds
    shares = [e["done"] for e in events if "done" in e]
    assert shares == sorted(shares) and 0 <= shares[0] and shares[-1] <= 1, "share runs back"
    done = f.run("eval", "machine", "--data", "text.txt", "--ctx", "64", "--windows",
                 "3", "--json")
    result = json.loads(done.stdout)
    assert result["windows"] == 3 and result["tokens"] == 3 * 63, result
    decoded = f.run("eval", "machine", "--data", "text.txt", "--ctx", "64",
                    "--windows", "3", "--json", "--decode")
    gap = json.loads(decoded.stdout)["nll"] - result["nll"]
    assert abs(gap) <= 2e-3, (result, decoded.stdout)
    prompt = [json.loads(f.run("eval", "machine", "--data", "text.txt", "--ctx", "64", "--windows", "3",
                               "--json", "--decode", "--chunk", "32", "--set", f"run.compute={compute}").stdout)
              for compute in ("f32", "bf16")]
    assert prompt[0]["compute"] == "f32" and prompt[1]["compute"] in ("bf16", "f32"), prompt
    # 16-bit activations move a loss by less than a single rounding of BF16 would
    assert abs(prompt[0]["nll"] - prompt[1]["nll"]) <= 2e-3, prompt


def test_two_threads(f):
    """Two threads give their own bytes every time: a matrix product with other tiles
    may round otherwise. The losses stay what they are, at rates so low that training does not
    blow a last bit up into another path, in F32 or BF16."""
    calm = ["--set", "optimizer.lr_clip=0.001", "--set", "optimizer.lr_smooth=0.001", "--set", "optimizer.lr_shift=1e-4",
            "--set", "optimizer.schedule=constant"]
    two = [a if a != "-j1" else "-j2" for a in f.command("two-threads", *calm)]
    f.call(two)
    first = f.files("two-threads"), f.files("two-threads.state")
    shutil.rmtree(f.path / "two-threads")
    shutil.rmtree(f.path / "two-threads.state")
    f.call(two)
    assert (f.files("two-threads"), f.files("two-threads.state")) == first, "other bytes"
    f.call(f.command("one-thread", *calm))
    one = json.loads(f.files("one-thread.state")["manifest.json"])["done"]
    both = json.loads(first[1]["manifest.json"])["done"]
    for a, b in zip(one, both):
        assert abs(a["best_loss"] - b["best_loss"]) <= 0.01 * a["best_loss"], (a, b)
    same = first[0] == f.files("one-thread")
    print("    one and two threads:", "same bytes" if same else "other bytes")


if __name__ == "__main__":
    harness.main(globals(), Fixture)
