#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Tuning of formats on a tiny model and on the demo model: test_tune.py WKVQ [TEST...]."""
import json
import pathlib
import re
import shlex
import shutil
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import harness
import tiny
from test_sweep import DEMO, Fixture, close

TUNE = ["--data", "text.txt", "--eval", "eval.txt", "--ctx", "64", "--seqlen", "64", "--windows", "4", "-j1"]


def config_of(path):
    """Returns a written configuration as {"weights.bits": "4"}, without comments."""
    found, section = {}, None
    for line in path.read_text().splitlines():
        if line.startswith("#"):
            continue
        key, value = line.split(":", 1)
        if not line.startswith(" "):
            section = key
        else:
            found[f"{section}.{key.strip()}"] = value.strip()
    return found


def run_printed(f, done, *more):
    """Runs the command that tune recommends, with a small budget."""
    (printed,) = re.findall(r"next, run `wkvq (.*)`", done.stderr)
    return f.run(*shlex.split(printed), "--set", "calibration.samples=4", "--set", "calibration.seqlen=32", "-j1", *more)


def quantize_as_tuned(f, done, trial):
    """The printed command works as it is, and has the bits of the trial that it was recommended for."""
    got = json.loads(run_printed(f, done, "--json").stdout)
    assert close(got["weight_bits"], trial["weight_bits"]) and close(got["kv_bits"], trial["kv_bits"]), (got, trial)


def check_recommended(f, config, best):
    said = re.search(r"^# ([+-][\d.]+)% of perplexity against full precision", (f.path / config).read_text(), re.M)
    assert abs(float(said[1]) - 100 * best["increase"]) < 0.01, (said[0], best)
    config = config_of(f.path / config)
    if best["weights_mixed"] is None:
        assert config["weights.group_size"] == str(best["weight_group"])
    assert config["weights.mixed"].strip('"') == (best["weights_mixed"] or "")
    if best["kv_mixed"] is None:
        assert config["kv.group_size"] == str(best["kv_group"])
    assert config["kv.mixed"].strip('"') == (best["kv_mixed"] or "")
    assert config["calibration.samples"] == "99"


def by_bits(f):
    return [f.wkvq, "tune", "model", "--max-bits", "5.4", "--max-kv-bits", "9", "-o", "b.yaml", "--json", "--per-kind",
            "--set", "calibration.samples=99", "--set", "refine.samples=7", "--set", "refine.seqlen=32", *TUNE]


def refuse_unverified(f, command, name):
    """A trial whose artifact is wrong is no trial, even if it is the best."""
    path = f.path / "b.yaml.work/results.jsonl"
    kept = path.read_text()
    rows = [r | {"verified": False} if r["name"] == name else r for r in map(json.loads, kept.splitlines())]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    done = f.call(command, want=3)
    assert f"cell '{name}': verification failed" in done.stderr and not done.stdout, done.stderr
    path.write_text(kept)


def test_tune_by_bits(f):
    shutil.rmtree(f.path / "b.yaml.work", ignore_errors=True)
    command = by_bits(f)
    done = f.call(command)
    trials = json.loads(done.stdout)
    assert 1 < len(trials) <= 7, trials
    assert all(t["weight_bits"] <= 5.4 and t["kv_bits"] <= 9 for t in trials), trials
    mixed = [t for t in trials if t["weights_mixed"]]
    assert mixed and all(t["weight_group"] is None for t in mixed), trials
    best = [t for t in trials if t["recommended"]]
    assert len(best) == 1 and best[0]["ppl"] == min(t["ppl"] for t in trials)
    check_recommended(f, "b.yaml", best[0])
    assert config_of(f.path / "b.yaml")["refine.samples"] == "7"
    quantize_as_tuned(f, done, best[0])
    assert "estimating the loss of each format" in done.stderr
    cells = len(trials) + 1  # and full precision
    assert f"cell {cells} of {cells}: " in done.stderr, done.stderr
    again = f.call(command)
    assert again.stdout == done.stdout and "cell 1 of" not in again.stderr
    assert "estimating the loss of each format" not in again.stderr  # the pass is not made twice
    refuse_unverified(f, command, best[0]["name"])
    alone = json.loads(f.call([c for c in command if c != "--per-kind"] + ["--uniform"]).stdout)
    assert [t["name"] for t in alone] == [t["name"] for t in trials if not t["weights_mixed"] and not t["kv_mixed"]]


def test_tune_layers(f):
    """Formats by layer; a damaged estimate is computed again."""
    command = [f.wkvq, "tune", "model", "--max-bits", "5.4", "--max-kv-bits", "9", "-o", "l.yaml", "--json",
               "--set", "calibration.samples=99", *TUNE]
    done = f.call(command)
    trials = json.loads(done.stdout)
    (mixed,) = {t["weights_mixed"] for t in trials if t["weights_mixed"]}
    rules = [r.strip() for r in mixed.split(",")]
    assert any(r[0].isdigit() for r in rules), rules
    best = next(t for t in trials if t["recommended"])
    check_recommended(f, "l.yaml", best)
    quantize_as_tuned(f, done, best)
    estimate = f.path / "l.yaml.work" / "sensitivity.json"
    whole = estimate.read_text()
    estimate.write_text(whole[:100])
    again = f.call(command)
    assert "is measured again" in again.stderr and estimate.read_text() == whole and json.loads(again.stdout) == trials
    estimate.write_text(json.dumps(json.loads(whole) | {"kv_loss": [1]}))
    done = f.call(command, want=2)
    assert "kv_loss" in done.stderr and not done.stdout, done.stderr


def test_tune_without_trials(f):
    """The mixes that trials would try, with nothing calibrated or evaluated."""
    command = [f.wkvq, "tune", "model", "--max-bits", "5.4", "--max-kv-bits", "9", "--json", *TUNE]
    tried = json.loads(f.call([*command, "-o", "w.yaml"]).stdout)
    done = f.call([*command, "--no-trials", "-o", "n.yaml"])
    [taken] = json.loads(done.stdout)
    both = next(t for t in tried if t["weights_mixed"] and t["kv_mixed"])
    for name in ("name", "weights_mixed", "kv_mixed", "weight_group", "kv_group"):
        assert taken[name] == both[name], (name, taken, both)
    for name in ("weight_bits", "kv_bits"):
        assert abs(taken[name] - both[name]) < 1e-9, (name, taken, both)
    assert taken["recommended"] and [taken[name] for name in ("ppl", "increase", "increase_stderr")] == [None] * 3, taken
    config = config_of(f.path / "n.yaml")
    assert config["weights.mixed"].strip('"') == both["weights_mixed"] and config["kv.mixed"].strip('"') == both["kv_mixed"], config
    assert not (f.path / "n.yaml.work/results.jsonl").exists(), "there was a trial"
    assert "without a trial" in (f.path / "n.yaml").read_text()
    shown = f.call([*[c for c in command if c != "--json"], "--no-trials", "-o", "n.yaml"]).stdout.splitlines()
    assert shown[1].split()[-4:] == ["-", "-", "<-", "recommended"], shown
    for more in (["--uniform"], ["--max-ppl-increase", "5%"]):
        goal = [] if more[0] == "--max-ppl-increase" else ["--max-bits", "5.4"]
        said = f.call([f.wkvq, "tune", "model", *goal, "--no-trials", *more, *TUNE], want=2).stderr
        assert "--no-trials needs --max-bits and excludes --uniform" in said, said


def test_tune_trials_keep_their_budget(f):
    """--set changes the configuration that is written; trials have options of their own."""
    if not (f.path / "b.yaml.work").exists():
        f.call(by_bits(f))
    rows = f.rows("b.yaml.work")
    assert rows and {r["identity"]["config"]["calibration"]["samples"] for r in rows} == {8}, rows
    assert not any(r["identity"]["config"].get("refine", {}).get("samples") for r in rows), rows


def test_tune_wide_bound(f):
    """With bounds above the finest sizes of 8 bits, the best choice is one format, which no uniform trial has."""
    done = f.run("tune", "model", "--max-bits", "9", "--max-kv-bits", "12", "-o", "wide.yaml", "--json", *TUNE)
    trials = json.loads(done.stdout)
    mixed = [t for t in trials if t["weights_mixed"] and t["kv_mixed"]]
    assert len(mixed) == 1 and 8 < mixed[0]["weight_bits"] <= 9 and 8 < mixed[0]["kv_bits"] <= 12, trials
    assert all("=8" in rule for key in ("weights_mixed", "kv_mixed") for rule in mixed[0][key].split(",")), mixed
    quantize_as_tuned(f, done, next(t for t in trials if t["recommended"]))
    # a mix that is one of the uniform trials is none
    done = f.run("tune", "model", "--max-bits", "9", "--max-kv-bits", "12", "-o", "eight.yaml", "--json", *TUNE,
                 "--set", "weights.bits=8", "--set", "kv.bits=8", "--work", "eight.work")
    trials = json.loads(done.stdout)
    assert not any(t["kv_mixed"] for t in trials), trials


def test_tune_full_precision(f):
    """The reference quantizes nothing, whatever the configuration does; and the type of activations is kept."""
    done = f.run("tune", "model", "--max-bits", "5.4", "--max-kv-bits", "9", "--uniform", "-o", "q.yaml", "--json", *TUNE,
                 "--set", "head.bits=3", "--set", "activations.bits=4", "--set", "run.compute=bf16")
    plain = next(r for r in f.rows("q.yaml.work") if r["name"] == "full precision")
    exact = json.loads(f.run("eval", "model", "-d", "eval.txt", "--ctx", "64", "--windows", "4", "-j1", "--json", "--set",
                             "run.compute=bf16").stdout)
    assert close(plain["ppl"], exact["ppl"]), (plain["ppl"], exact["ppl"])
    assert json.loads(done.stdout) and plain["weight_bits"] == plain["kv_bits"] == 16, plain
    config = config_of(f.path / "q.yaml")
    assert config["run.compute"] == "bf16" and config["head.bits"] == "3" and config["activations.bits"] == "4", config
    assert "run.threads" not in config and "run.device" not in config, config


def test_tune_keys_by_channel(f):
    """Keys in blocks of tokens have estimates of their own, values those of a cache by token. No artifact can hold such
    keys, so that the next step is a calibration."""
    losses = {}
    for method, made in (("token", "token-wkvq/manifest.json"), ("channel", "channel.state/manifest.json")):
        done = f.run("tune", "model", "--max-bits", "5.4", "--max-kv-bits", "9", "-o", method + ".yaml", *TUNE,
                     "--set", "kv.method=" + method, "--set", "kv.group_size=8")
        run_printed(f, done)
        assert (f.path / made).exists(), made
        kept = json.loads((f.path / (method + ".yaml.work") / "sensitivity.json").read_text())
        half = len(kept["kv_loss"]) // 6  # three layers of keys and values
        losses[method] = [kept["kv_loss"][i * half:(i + 1) * half] for i in range(6)]
        assert kept["identity"].get("keys") == ("by channel" if method == "channel" else None), kept["identity"]
    keys, values = ([losses[m][side::2] for m in losses] for side in (0, 1))
    assert values[0] == values[1] and all(a != b for a, b in zip(*keys)), losses


def test_tune_experts(f):
    """Mixes need estimates, which a mixture of experts has not: it is refused before anything is written."""
    tiny.make_model(f.path / "moe", model_type="qwen3_moe", architectures=["Qwen3MoeForCausalLM"], num_experts=4,
                    num_experts_per_tok=2, moe_intermediate_size=16, norm_topk_prob=True, decoder_sparse_step=1,
                    mlp_only_layers=[])
    command = ["tune", "moe", "--max-bits", "6", "--max-kv-bits", "9", "-o", "moe.yaml", *TUNE]
    done = f.run(*command, want=2)
    assert "give --uniform" in done.stderr and "by hand" not in done.stderr, done.stderr
    assert not list(f.path.glob("moe.yaml*")), list(f.path.glob("moe.yaml*"))
    f.run(*command, "--uniform")
    assert config_of(f.path / "moe.yaml")["weights.mixed"] == '""'


def test_tune_refuses(f):
    for more, wanted in ((["--uniform", "--per-kind"], "--per-kind"),
                         (["--set", "weights.mixed=q_proj=4"], "weights.mixed is chosen by the search")):
        done = f.run("tune", "model", "--max-bits", "5.4", "-o", "r.yaml", *TUNE, *more, want=2)
        assert wanted in done.stderr, done.stderr
    # what no group size reaches names the bits that do, and these bits are within the bound
    for key in ("weights.bits", "kv.bits"):
        bounds = ["--max-bits=6"] if key == "weights.bits" else ["--max-bits=16", "--max-kv-bits=6"]
        wide = [f.wkvq, "tune", "model", "-o", "r.yaml", *TUNE, "--set", f"{key}=8", "--uniform"]
        done = f.call([*wide, *bounds], want=2)
        (bits, least) = re.search(rf"give --set {key}=(\d) \(at least ([\d.]+)\)", done.stderr).groups()
        assert int(bits) < 6 and float(least) <= 6 and "these shapes need at least" in done.stderr, done.stderr
        low = f.call([*wide, *(b.replace("=6", "=1.5") for b in bounds)], want=2)
        assert f"even with --set {key}=2 these shapes need" in low.stderr, low.stderr
    # a share is not taken for a percentage before all trials
    share = f.run("tune", "model", "--max-ppl-increase=0.05", "-o", "r.yaml", *TUNE, want=2)
    assert "write 0.05% if that many percent are meant, or 5% if it is a share" in share.stderr, share.stderr
    assert not (f.path / "r.yaml").exists() and not (f.path / "r.yaml.work").exists()


def tune_demo(f, out, percent, *more, want=0):
    """On the demo model, because a random model improves or worsens by chance."""
    return f.run("tune", DEMO, "-d", DEMO / "calibration.txt", "-e", DEMO / "heldout.txt", "--json", "-j1",
                 "--ctx", "128", "--windows", "4", "--samples", "2", "--seqlen", "64", "--epochs", "1", "-o", out,
                 "--set", "crr.blocks=0", "--work", "tune-work", f"--max-ppl-increase={percent}", *more, want=want)


def test_tune_by_increase(f):
    done = tune_demo(f, "i.yaml", "1000%")
    (first,) = json.loads(done.stdout)
    assert first["weight_group"] == 0 and first["kv_group"] == 64 and first["recommended"], first
    # A bound of half the coarsest format's increase needs at least one step.
    bound = first["increase"] / 2
    assert 0.01 < bound < 1, first
    trials = json.loads(tune_demo(f, "i.yaml", f"{100 * bound}%").stdout)
    best = next(t for t in trials if t["recommended"])
    assert trials[0] == first | {"recommended": False} and len(trials) > 1 and best["increase"] <= bound, trials
    bits = [t["weight_bits"] + t["kv_bits"] for t in trials if t["increase"] <= bound]
    assert best["weight_bits"] + best["kv_bits"] == min(bits)
    assert config_of(f.path / "i.yaml")["weights.group_size"] == str(best["weight_group"])


def test_tune_out_of_reach(f):
    done = tune_demo(f, "none.yaml", 0, "--set", "weights.bits=2", "--set", "kv.bits=2", want=2)
    assert not done.stdout and "no group sizes meet this bound" in done.stderr, done.stdout
    assert not (f.path / "none.yaml").exists()


if __name__ == "__main__":
    harness.main(globals(), Fixture)
