#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""End-to-end refinement on a tiny model, by calibrate, quantize and refine: test_refine.py WKVQ [TEST...]."""
import json
import pathlib
import shutil
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import forge
import harness
import tiny
from test_pipeline import RECIPE, Fixture, wait_for_event

REFINE = ["refine.samples=12", "refine.seqlen=64", "refine.guard=3", "refine.batch=2",
          "refine.epochs=8", "refine.lr_scales=0.01", "refine.lr_norms=0.01"]


def nll(f, *args):
    done = f.run("eval", *args, "--task", "ppl", "--data", "text.txt", "--ctx", "64",
                 "--windows", "6", "-j1", "-q", "--json")
    return json.loads(done.stdout)["nll"]


def test_refinement(f):
    """Stopped and resumed: the same bytes. Norms and scales change, codes and zeros stay; the
    artifact holds what the state holds, and the simulation of both is the same model. With two bits
    there is much to gain, in F32 or BF16."""
    recipe = [*RECIPE, *REFINE, "weights.bits=2", "kv.bits=2", "calibration.epochs=1"]
    for out in ("refined", "refined-again"):
        log = f.path / (out + ".json")
        process = f.start(f.command(out, "--log-json", str(log), recipe=recipe))
        if out == "refined-again":
            wait_for_event(log, '"refine", "step": 20', process)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130, process.returncode
            manifest = json.loads((f.path / "refined-again.state" / "manifest.json").read_text())
            assert len(manifest["done"]) == 4 and "refined" not in manifest, manifest
            assert manifest["partial"]["block"] == 4, manifest["partial"]
            process = f.start(f.command(out, recipe=recipe))
        assert process.wait(120) == 0
    assert f.files("refined") == f.files("refined-again")
    assert f.files("refined.state") == f.files("refined-again.state")
    manifest = json.loads((f.path / "refined.state" / "manifest.json").read_text())
    result = manifest["refined"]
    assert 0 < result["best"] < 0.95 * result["start"] and result["best_step"] > 0, result
    tensors = json.loads((f.path / "refined" / "manifest.json").read_text())["tensors"]
    norms = [t for name, t in tensors.items() if name.endswith("norm.weight")]
    assert len(norms) == 9 and all(t["dtype"] == "F32" for t in norms), norms
    args = [f.wkvq, "verify", "refined", "--against", "model", "--data", "text.txt", "--json"]
    with_state = json.loads(f.call([*args, "--state", "refined.state"]).stdout)
    assert with_state["passed"] and with_state["weights_unchecked"] == 0, with_state
    alone = json.loads(f.call(args).stdout)
    unchecked = 4 * (32 * 32 + 2 * 16 * 32 + 32 * 32 + 3 * 32 * 48) + 9 * 32
    assert alone["passed"] and alone["weights_unchecked"] == unchecked, alone
    f.reference()
    refined, was = nll(f, "refined"), nll(f, "reference")
    assert abs(refined - nll(f, "model", "--state", "refined.state")) < 1e-5
    assert abs(refined - was) > 1e-4, (refined, was)


def refuse_state(f, artifact, state, *more, wanted):
    """Another calibration is no fault of the artifact."""
    done = f.call([f.wkvq, "verify", artifact, "--state", state, "-j1", *more], want=2)
    text = done.stderr.decode()
    assert wanted in text and "Do not use the artifact" not in text, text


def test_state_of_another_calibration(f):
    """The marks explain what differs. Without --against, what a state has is compared alone."""
    f.reference()
    small = ["calibration.samples=2", "calibration.epochs=1", "refine.samples=4", "refine.guard=2", "refine.seqlen=32",
             "refine.epochs=1"]
    for name, more in (("one", ["calibration.seed=5"]), ("two", ["calibration.seed=6"]), ("codes", ["weights.round=learned"])):
        f.call(f.command(name, recipe=[*RECIPE, *small, *more]))
    for more in ([], ["--against", "model"]):
        refuse_state(f, "one", "two.state", *more, wanted="is not the calibration that one was made from: provenance.state is ")
        for name in ("one", "codes", "reference"):
            report = json.loads(f.run("verify", name, "--state", name + ".state", "--json", "-j1", *more).stdout)
            assert report["passed"] and report["weights_compared"] > 0, report
            assert (report["parts"]["weights"] == "pass") == bool(more), report
    for ending, form, differing in ((".qweight", "B", 48 * 32 // 2), (".scales", "<H", 48 * 3), (".zeros", "B", 48 * 2)):
        shutil.rmtree(f.path / "damaged", ignore_errors=True)
        shutil.copytree(f.path / "codes", f.path / "damaged")
        forge.change_tensors(f.path / "damaged", "1.mlp.up_proj" + ending, form, lambda x: x ^ 1)
        done = f.run("verify", "damaged", "--state", "codes.state", "-j1", want=3)
        assert f"1.mlp.up_proj.qweight: {differing} scales, zeros or codes are not the state's".encode() in done.stderr, done.stderr
    f.run("convert", "model", "-o", "nearest", "-q", *harness.words(RECIPE[3:5]))
    refuse_state(f, "nearest", "one.state", wanted="its manifest names no calibration")


def test_refined_scales_keep_their_bits(f):
    """weights.scale_bits holds in refinement: the writer would refuse a scale of more bits."""
    f.call(f.command("portable", recipe=[*RECIPE, *REFINE, "weights.scale_bits=7"]))
    done = f.run("verify", "portable", "--against", "model", "--state", "portable.state", "--json")
    assert json.loads(done.stdout)["passed"], done.stdout


def test_refinement_of_a_finished_calibration(f):
    """A state that was calibrated without refinement is refined by the same command with the settings
    of refinement: the same bytes as in one go. From then on they cannot change."""
    f.call(f.command("one-go", recipe=[*RECIPE, *REFINE]))
    sets = [w for pair in RECIPE for w in ("--set", pair)]
    args = [f.wkvq, "calibrate", "model", "--data", "text.txt", "-o", "later.state", "-j1", *sets]
    f.call(args)
    f.call(args + ["--set", "refine.samples=5", "--set", "refine.seqlen=64", "--plan"])
    f.call(args + [w for pair in REFINE for w in ("--set", pair)])
    assert f.files("later.state") == f.files("one-go.state")
    done = f.call(args, want=2)
    assert b"config.refine.samples is 12 in the state and 0 in this run" in done.stderr, done.stderr
    done = f.call(args + [w for pair in REFINE for w in ("--set", pair)] + ["--set", "refine.guard=4"], want=2)
    assert b"config.refine.guard is 3 in the state and 4 in this run" in done.stderr, done.stderr


def test_an_unrefined_state_makes_no_artifact(f):
    log = f.path / "early.json"
    process = f.start(f.command("early", "--log-json", str(log), recipe=[*RECIPE, *REFINE]))
    wait_for_event(log, '"refine", "step": 20', process)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, process.returncode
    done = f.run("convert", "model", "--state", "early.state", "-o", "none", want=2)
    assert b"calibrated, but not refined" in done.stderr, done.stderr
    done = f.run("eval", "model", "--state", "early.state", "--task", "ppl", "--data", "text.txt",
                 "--ctx", "64", want=2)
    assert b"calibrated, but not refined" in done.stderr, done.stderr
    assert not (f.path / "none").exists()


def test_guard_keeps_the_start(f):
    """Rates that ruin the model: the artifact computes what it would without refinement."""
    ruin = [*RECIPE, *REFINE, "refine.lr_scales=0.1", "refine.lr_norms=0.1"]
    done = f.call(f.command("ruined", recipe=ruin))
    assert b"refinement gained nothing" in done.stderr, done.stderr
    f.reference()
    assert nll(f, "ruined") == nll(f, "reference")


def test_refinement_needs_something_to_refine(f):
    for more, words in ((["activations.bits=8"], b"refinement leaves activations unquantized"),
                        (["kv.method=channel"], b"a cache quantized per token"),
                        (["weights.bits=16", "kv.bits=16"], b"nothing to refine"),
                        (["refine.guard=4000"], b"overlap none of the")):
        args = [f.wkvq, "calibrate", "model", "--data", "text.txt", "-o", "refused.state"]
        sets = [w for pair in [*RECIPE, *REFINE, *more] for w in ("--set", pair)]
        done = f.call(args + sets, want=2)
        assert words in done.stderr, done.stderr
        assert not (f.path / "refused.state").exists()


def refine(f, source, *more, text="text.txt"):
    return [f.wkvq, "refine", "model", source, "--data", text, "-j1", "-q",
            *(w for pair in REFINE for w in ("--set", pair)), *more]


def guard_loss(f, state):
    result = json.loads((f.path / state / "manifest.json").read_text())["refined"]
    return result["start"], result["best"]


def killed_in_refinement(f, args, log):
    log = f.path / log
    process = f.start([*args, "--log-json", str(log)])
    wait_for_event(log, '"refine", "step": 20', process)
    process.kill()
    assert process.wait(60) == -signal.SIGKILL, "it had ended before"


def test_refine_a_state(f):
    """In place, with the settings of refinement alone: the bytes of `calibrate` with all settings, also
    after a kill. Other settings and another text are refused, with both values."""
    f.call(f.command("at-once", recipe=[*RECIPE, *REFINE]))
    f.reference()
    shutil.copytree(f.path / "reference.state", f.path / "place.state")
    (f.path / "other.txt").write_text((f.path / "text.txt").read_text()[:9000])
    before = f.files("place.state")
    for args, words in ((refine(f, "place.state", "--set", "weights.bits=3"), b"weights.bits is 4 there and 3 in this run"),
                        (refine(f, "place.state", "--set", "calibration.seed=1"), b"calibration.seed is 0 there and 1"),
                        (refine(f, "place.state", "--set", "refine.samples=0"), b"refine.samples is 0"),
                        (refine(f, "place.state", "--set", "refine.seqlen=300"), b"refine.seqlen: 300 tokens"),
                        (refine(f, "place.state", "-o", "out"), b"refined in place"),
                        (refine(f, "place.state", text="other.txt"), b"on its calibration's text")):
        assert words in f.call(args, want=2).stderr, args
    assert f.files("place.state") == before
    killed_in_refinement(f, refine(f, "place.state"), "place.json")
    done = f.call(refine(f, "place.state", "--set", "refine.guard=4"), want=2)  # a step is saved
    assert b"config.refine.guard is 3 in the state and 4 in this run" in done.stderr, done.stderr
    done = json.loads(f.call(refine(f, "place.state", "--json")).stdout)
    assert f.files("place.state") == f.files("at-once.state")
    for name, value in zip(("start", "best"), guard_loss(f, "place.state")):
        assert abs(done["refinement"][name] - value) < 1e-8, (done, value)
    inspected = json.loads(f.run("inspect", "place.state", "--json").stdout)
    assert inspected["refinement"] == done["refinement"], inspected
    f.run("refine", "model", "place.state", "--data", "text.txt", "-j1")  # its own settings
    assert f.files("place.state") == f.files("at-once.state")
    done = f.call(refine(f, "place.state", "--set", "refine.guard=4"), want=2)
    assert b"config.refine.guard is 3 in the state and 4 in this run" in done.stderr, done.stderr


def test_refine_takes_160_samples_by_default(f):
    f.reference()
    shutil.copytree(f.path / "reference.state", f.path / "default.state")
    args = [f.wkvq, "refine", "model", "default.state", "--data", "text.txt", "-j1"]
    f.call([*args, "--set", "refine.seqlen=8", "--set", "refine.batch=32"])
    identity = json.loads((f.path / "default.state" / "manifest.json").read_text())["identity"]
    assert identity["config"]["refine"]["samples"] == 160, identity
    assert len(identity["text"]["refine_windows"]) == 160 + 8


def test_refine_an_artifact_rounded_to_nearest(f):
    """A new artifact, verified and better; killed and resumed: the same bytes of artifact and state."""
    f.run("convert", "model", "--set", "weights.group_size=12", "--set", "kv.group_size=8", "-o", "rtn", "-j1")
    source = f.files("rtn")
    text = f.path / "another.txt"  # an artifact is refined on any text
    tiny.make_text(text, 2500)
    for out in ("rtn-refined", "rtn-again"):
        args = refine(f, "rtn", "-o", out, "--keep-state", text="another.txt")
        if out == "rtn-again":
            killed_in_refinement(f, args, "rtn.json")
            assert not (f.path / out).exists()
            done = f.call(refine(f, out + ".state", text="another.txt"), want=2)
            assert b"name that artifact again" in done.stderr, done.stderr
        f.call(args)
    assert f.files("rtn-refined") == f.files("rtn-again")
    assert f.files("rtn-refined.state") == f.files("rtn-again.state")
    assert f.files("rtn") == source
    start, best = guard_loss(f, "rtn-refined.state")
    assert 0 < best < 0.8 * start, (start, best)
    spec = json.loads((f.path / "rtn-refined/config.json").read_text())["quantization_config"]
    assert spec["format_version"] == 4 and spec["weights"]["refined"] is True, spec
    verify = [f.wkvq, "verify", "rtn-refined", "--against", "model", "--data", "text.txt", "--json"]
    with_state = json.loads(f.call([*verify, "--state", "rtn-refined.state"]).stdout)
    assert with_state["passed"] and with_state["weights_unchecked"] == 0, with_state
    alone = json.loads(f.call(verify).stdout)
    assert alone["passed"] and alone["weights_unchecked"] > 0, alone
    done = f.call(refine(f, "rtn-refined", "-o", "twice"), want=2)
    assert b"already refined" in done.stderr, done.stderr


def test_refine_an_artifact_and_its_state_alike(f):
    """What the artifact of a state becomes by refinement is what the state becomes: calibrated, with codes
    that were chosen, in mixed formats and rotated."""
    for name, more in (("like-lwc", ["refine.learn=scales+norms+cache+rounding"]), ("like-gptq", ["weights.method=gptq"]),
                       ("like-mix", ["weights.mixed=v_proj=8:16, 0.q_proj=5, 1.o_proj=16", "kv.mixed=1.k=16, 3.v=8"]),
                       ("like-rot", ["kv.rotate=kv", "weights.round=learned"])):
        learn = [w for m in more if m.startswith("refine.") for w in ("--set", m)]
        recipe = [*RECIPE, "calibration.epochs=2", *(m for m in more if not m.startswith("refine."))]
        f.call(f.command(name, recipe=recipe))
        f.call(refine(f, name, "-o", name + "-a", *learn))
        assert not (f.path / (name + "-a.state")).exists()
        f.call(refine(f, name + ".state", *learn))
        f.run("convert", "model", "--state", name + ".state", "-o", name + "-s", "-j1")
        a, s = f.files(name + "-a"), f.files(name + "-s")
        assert a.keys() == s.keys() and all(a[n] == s[n] for n in a if n != "manifest.json"), name
        a, s = (json.loads(x["manifest.json"]) for x in (a, s))
        assert a["tensors"] == s["tensors"] and a["config"] == s["config"], name
        was = json.loads((f.path / name / "manifest.json").read_text())["provenance"]
        assert a["provenance"]["artifact"]["provenance"] == was, a["provenance"]
        assert a["provenance"]["calibration"] == was["calibration"], a["provenance"]


def test_refine_refuses_sources_that_do_not_fit(f):
    f.reference()
    tiny.make_model(f.path / "stranger", num_hidden_layers=4, rope_theta=20000)
    tiny.make_model(f.path / "wide", num_hidden_layers=4, intermediate_size=64)
    f.run("convert", "model", "--set", "weights.group_size=12", "-o", "nearest-source", "-j1")
    f.run("convert", "model", "--set", "kv.bits=16", "--set", "weights.bits=16", "-o", "full", "-j1")
    words = [(refine(f, "reference"), b"give -o OUT"),
             (refine(f, "reference", "-o", "reference", "--force"), b"one is inside the other"),
             (refine(f, "reference", "-o", "no", "--state", "reference/s"), b"one is inside the other"),
             (refine(f, "model", "-o", "no"), b"neither the state of a calibration nor an artifact"),
             (refine(f, "missing", "-o", "no"), b"no such directory"),
             (refine(f, "full", "-o", "no"), b"nothing to refine"),
             (refine(f, "reference", "-o", "no", "--set", "kv.method=token"), b"kv.method is channel_token there and token"),
             (refine(f, "reference", "-o", "no")[:4] + ["-o", "no"], b"refinement needs one; give --data")]
    for model, source, text in (("stranger", "reference", b"checkpoint.crc32 is"),
                                ("stranger", "reference.state", b"checkpoint.crc32 is"),
                                ("wide", "nearest-source", b"intermediate_size 64")):
        args = refine(f, source, *([] if source.endswith("state") else ["-o", "no"]))
        words.append(([model if a == "model" else a for a in args], text))
    other = f.path / "other-weights"  # shapes alike
    shutil.copytree(f.path / "model", other)
    raw = bytearray((other / "model.safetensors").read_bytes())
    raw[-4000:-3998] = bytes(b ^ 0x40 for b in raw[-4000:-3998])
    (other / "model.safetensors").write_bytes(raw)
    words.append((["other-weights" if a == "model" else a for a in refine(f, "nearest-source", "-o", "no")],
                  b"damaged, or not made from other-weights"))
    for args, text in words:
        done = f.call(args, want=2)
        assert text in done.stderr, (args, done.stderr)
        assert not (f.path / "no").exists() and not (f.path / "no.state").exists(), args


if __name__ == "__main__":
    harness.main(globals(), Fixture)
