#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A cache of llama.cpp as the target (kv.target): test_target.py WKVQ.

The settings that follow from it, what simulates it, the same weights with and without a state, what the
packed runtime and the exports say, and what is refused."""
import json
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import gguf_reader  # noqa: E402
import tiny  # noqa: E402

MODEL = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 1,
         "head_dim": 64, "num_hidden_layers": 2}
TARGETS = {"llama.cpp-q4_0": "q4_0", "llama.cpp-q4_1": "q4_1"}
SMALL = ["calibration.samples=3", "calibration.seqlen=24", "calibration.epochs=1", "crr.blocks=0",
         "weights.group_size=32", "weights.scale_bits=7", "run.compute=f32"]
REFINE = ["refine.samples=4", "refine.seqlen=24", "refine.guard=2"]


class Bench:
    def __init__(self, wkvq, folder):
        self.wkvq, self.folder = pathlib.Path(wkvq).resolve(), pathlib.Path(folder)

    def run(self, *args, status=0):
        done = subprocess.run([self.wkvq, *map(str, args)], cwd=self.folder, capture_output=True, timeout=300)
        assert done.returncode == status, f"{args}\nexit {done.returncode}\n{done.stderr.decode()}"
        return done.stdout.decode() + done.stderr.decode()

    def nll(self, *args):
        """Loss and report of `wkvq eval` on four windows, in f32."""
        text = self.run("eval", *args, "--data", "t.txt", "--ctx", 24, "--windows", 4, "--json", "-q",
                        "--set", "run.compute=f32")
        done = json.loads(text)
        return done["nll"], done


def sets(*pairs):
    return [word for pair in pairs for word in ("--set", pair)]


def kv_of(bench, artifact):
    config = json.loads((bench.folder / artifact / "config.json").read_text())
    return config["quantization_config"]


def check_settings(bench, artifact, target):
    q = kv_of(bench, artifact)
    assert q["format_version"] == 7, q
    want = {"method": "token", "bits": 4, "group_size": 32, "key_stage": "post_rope", "past_only": False, "window": 1,
            "sink": 0, "target": target}
    assert {key: q["kv"][key] for key in want} == want, q
    assert target in bench.run("inspect", artifact)


def check_simulation(bench, artifact, target):
    """The artifact's cache is simulated, as --simulate rtn does for its checkpoint. Another artifact can be
    evaluated in it, and it differs from the full-precision cache and from the other type."""
    own, report = bench.nll(artifact)
    assert report["kv_target"] == target and report["method"] == "simulation", report
    rtn, _ = bench.nll("m", "--simulate", "rtn", *sets(f"kv.target={target}", "weights.group_size=32"))
    assert abs(own - rtn) <= 1e-6, (own, rtn)
    plain, report = bench.nll(artifact, "--kv-bits", 16)
    assert "kv_target" not in report and plain != own, report
    assert abs(plain - own) < 0.3, (plain, own)
    other = next(t for t in TARGETS if t != target)
    assert bench.nll(artifact, "--set", f"kv.target={other}")[0] not in (own, plain)
    assert bench.nll("untargeted", "--set", f"kv.target={target}")[0] == own


def check_runtime(bench, artifact, target):
    """Weights and logits are verified with a cache in full precision, and the report says so."""
    text = bench.run("verify", artifact, "--against", "m", "--data", "t.txt", "--logit-tokens", 24, "--ctx", 24)
    assert f"simulates the cache of {target}, but has none" in text and "verdict     passed" in text, text
    text = bench.run("generate", artifact, "-p", "the", "-n", 2, status=2)
    assert "--kv-bits 16" in text and target in text, text
    bench.run("generate", artifact, "-p", "the", "-n", 2, "--kv-bits", 16)


def check_export(bench, artifact, target):
    kind = TARGETS[target]
    out = f"{artifact}.gguf"
    text = bench.run("export", artifact, "--format", "gguf", "--gguf-pre", "none", "-o", out)
    assert f"serve with -fa on -ctk {kind} -ctv {kind}" in text, text
    keys = gguf_reader.Gguf(bench.folder / out).keys
    assert keys["wkvq.kv_target"] == target, keys
    for form in ("dense", "compressed-tensors", "awq"):
        text = bench.run("export", artifact, "--format", form, "-o", "refused", status=2)
        assert f"kv.target is {target}" in text and "--kv drop" in text, text
        assert not (bench.folder / "refused").exists()
        bench.run("export", artifact, "--format", form, "--kv", "drop", "-o", f"{artifact}-{form}")
        card = (bench.folder / f"{artifact}-{form}" / "README.md").read_text()
        assert f"The target of the cache's calibration, {target}" in card, card


def check_calibrated(bench, target):
    """Calibrated and refined: the state, its artifact and the simulation of both agree."""
    args = ["--data", "t.txt", *sets(*SMALL, *REFINE, f"kv.target={target}", "kv.learn=true")]
    bench.run("calibrate", "m", *args, "-o", f"{target}.state", "-q")
    bench.run("convert", "m", "--state", f"{target}.state", "-o", f"{target}-calibrated", "-q")
    check_settings(bench, f"{target}-calibrated", target)
    state, _ = bench.nll("m", "--state", f"{target}.state")
    artifact, report = bench.nll(f"{target}-calibrated")
    assert report["kv_target"] == target and abs(state - artifact) <= 1e-5, (state, artifact)
    text = bench.run("verify", f"{target}-calibrated", "--against", "m", "--state", f"{target}.state", "--data",
                     "t.txt", "--logit-tokens", 24, "--ctx", 24)
    assert "verdict     passed" in text, text


def main():
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(sys.argv[1], folder)
        tiny.make_model(bench.folder / "m", **MODEL)
        tiny.make_text(bench.folder / "t.txt")
        bench.run("convert", "m", "-o", "untargeted", "-q", *sets("weights.group_size=32"))
        for target in TARGETS:
            artifact = f"{target}-rtn"
            bench.run("convert", "m", "-o", artifact, "-q", *sets(f"kv.target={target}", "weights.group_size=32"))
            check_settings(bench, artifact, target)
            check_simulation(bench, artifact, target)
            check_runtime(bench, artifact, target)
            check_export(bench, artifact, target)
            check_calibrated(bench, target)
    print("ok")


main()
