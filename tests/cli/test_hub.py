#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Models named as on the Hugging Face hub, from a cache that this test lays out: test_hub.py WKVQ [TEST...]."""
import json
import os
import shutil

import harness
import test_sweep
import tiny

COMMIT, OTHER = "0123456789abcdef0123456789abcdef01234567", "f" * 40
PLACES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME")


def cache(f, name="cache"):
    """A cache with models--org--tiny, whose files are links to blobs. Returns the folder of the model."""
    repo = f.path / name / "models--org--tiny"
    if not repo.exists():
        made = f.path / f"made-{name}"
        tiny.make_model(made, num_hidden_layers=1, seed=5)
        (repo / "blobs").mkdir(parents=True)
        (repo / "refs").mkdir()
        (repo / "refs/main").write_text(COMMIT)
        (repo / "refs/v1.0").write_text(OTHER)
        for i, file in enumerate(sorted(made.iterdir())):
            shutil.copy(file, repo / "blobs" / f"{i:064}")
            for revision in (COMMIT, OTHER):
                (repo / "snapshots" / revision).mkdir(parents=True, exist_ok=True)
                (repo / "snapshots" / revision / file.name).symlink_to(f"../../blobs/{i:064}")
    return repo


def inspect(f, name, want=0, **places):
    for place in PLACES:
        os.environ.pop(place, None)
    os.environ.update({"HF_HUB_CACHE": str(f.path / "cache")} if not places else places)
    return f.run("tokenize", name, "text.txt", "-v", want=want)


def test_names(f):
    repo = cache(f)
    want = f.run("tokenize", repo / "snapshots" / COMMIT, "text.txt").stdout
    for name, commit in (("org/tiny", COMMIT), ("org/tiny@main", COMMIT), ("org/tiny@v1.0", OTHER),
                         (f"org/tiny@{OTHER}", OTHER)):
        done = inspect(f, name)
        assert done.stdout == want and f"{name}: {repo}/snapshots/{commit}" in done.stderr, done.stderr


def test_places(f):
    """The first variable that is set wins, as in the hub's tools."""
    repo = cache(f)
    for below, variable in (("", "HF_HUB_CACHE"), ("", "HUGGINGFACE_HUB_CACHE"), ("hub", "HF_HOME"), ("huggingface/hub", "XDG_CACHE_HOME"),
                            (".cache/huggingface/hub", "HOME")):
        place = f.path / f"by-{variable}"
        (place / below).mkdir(parents=True)
        (place / below / repo.name).symlink_to(repo)
        inspect(f, "org/tiny", **{variable: str(place)})
        later = {v: "/nowhere" for v in PLACES[PLACES.index(variable) + 1:]}
        inspect(f, "org/tiny", **{variable: str(place)}, **later)
        if variable != "HF_HUB_CACHE":
            inspect(f, "org/tiny", want=2, **{variable: str(place), "HF_HUB_CACHE": str(f.path / "empty")})


def test_places_that_no_shell_expanded(f):
    """A ~ in front and variables are expanded, as in the hub's tools; an unknown variable stays."""
    repo = cache(f)
    place = f.path / "home $1/hf/hub"
    place.mkdir(parents=True)
    (place / repo.name).symlink_to(repo)
    home = str(f.path / "home $1")
    for value in ("~/hf", "$HOME/hf", "${HOME}/hf", "${HOME}//$BELOW"):
        inspect(f, "org/tiny", HF_HOME=value, HOME=home, BELOW="hf")
    for value in ("~org/hf", "$NONE/hf", "${HOME/hf", "$", "x~/hf"):
        done = inspect(f, "org/tiny", want=2, HF_HOME=value, HOME=home)
        assert f"{value}/hub: has no models--org--tiny" in done.stderr, done.stderr
    del os.environ["BELOW"]


def test_a_directory_wins(f):
    cache(f)
    tiny.make_model(f.path / "org/tiny", num_hidden_layers=2)
    try:
        assert "snapshots" not in inspect(f, "org/tiny").stderr
    finally:
        shutil.rmtree(f.path / "org")


def test_what_is_missing(f):
    cache(f)
    done = inspect(f, "org/none", want=2)
    assert "`hf download org/none` brings it" in done.stderr and "has no models--org--none" in done.stderr, done.stderr
    done = inspect(f, "org/tiny@dev", want=2)
    assert "`hf download org/tiny --revision dev` brings it" in done.stderr and "no revision dev" in done.stderr
    done = inspect(f, "org/tiny@" + "a" * 40, want=2)
    assert f"snapshots/{'a' * 40}: revision {'a' * 40} of the cache has this snapshot, but it is missing" in done.stderr
    for place in PLACES:
        os.environ.pop(place, None)


def test_broken_caches(f):
    repo = cache(f, "broken")
    place = {"HF_HUB_CACHE": str(f.path / "broken")}
    snapshot = repo / "snapshots" / COMMIT
    blob = (snapshot / "config.json").resolve()
    blob.rename(blob.with_suffix(".incomplete"))
    done = inspect(f, "org/tiny", want=2, **place)
    assert "config.json" in done.stderr and blob.name in done.stderr, done.stderr
    (snapshot / "config.json").unlink()
    done = inspect(f, "org/tiny", want=2, **place)
    assert "has no config.json, and a download has not ended (blobs/*.incomplete)" in done.stderr, done.stderr
    (snapshot / "config.json").symlink_to(os.path.relpath(blob, snapshot))
    shutil.copy(blob.with_suffix(".incomplete"), blob)
    done = inspect(f, "org/tiny", **place)
    assert "a download has not ended" in done.stderr, done.stderr
    shutil.rmtree(snapshot)
    assert "but it is missing" in inspect(f, "org/tiny", want=2, **place).stderr
    (repo / "refs/main").write_text("../../../etc\n")
    done = inspect(f, "org/tiny", want=2, **place)
    assert "is not a commit of 40 hexadecimal digits" in done.stderr and "lacks it" not in done.stderr, done.stderr


def test_links_to_what_is_not_read(f):
    """Blobs that no command reads may be missing; a shard may not, and the message names what brings it."""
    repo = cache(f, "links")
    place = {"HF_HUB_CACHE": str(f.path / "links")}
    snapshot = repo / "snapshots" / COMMIT
    for name in ("README.md", "pytorch_model.bin"):
        (snapshot / name).symlink_to("../../blobs/none")
    inspect(f, "org/tiny", **place)
    (snapshot / "model-00002-of-00002.safetensors").symlink_to("../../blobs/none")
    done = inspect(f, "org/tiny", want=2, **place)
    assert "model-00002-of-00002.safetensors: a link to ../../blobs/none, which is missing" in done.stderr, done.stderr
    assert "`hf download org/tiny` brings it" in done.stderr, done.stderr


def test_names_that_leave_the_cache(f):
    """Names with .. or in front of / are paths, and are never looked for in the cache."""
    repo = cache(f)
    (f.path / "cache/outside").mkdir()
    for name in ("../tiny", "org/..", "org/../tiny", "/org/tiny", "org/tiny/x", "./tiny", "org/.tiny", "tiny", "org/ti ny",
                 "org/a..b", "org/tiny@../main", "org/tiny@/main", "org/tiny@", f"org/tiny@refs/../../{COMMIT}"):
        done = inspect(f, name, want=2)
        assert "hf download" not in done.stderr and "snapshots" not in done.stderr, (name, done.stderr)
    assert repo.exists()


def test_every_command(f):
    """A model is found in each command that takes one, and the artifact and its card name it."""
    cache(f)
    inspect(f, "org/tiny")
    f.run("convert", "org/tiny", "-o", "art", "-q", "--set", "weights.group_size=12", "--set", "kv.group_size=8")
    manifest = json.loads((f.path / "art/manifest.json").read_text())
    assert manifest["provenance"]["base_model"] == "org/tiny", manifest["provenance"]
    text = ["--data", "text.txt", "--windows", "1", "--ctx", "32", "-q"]
    first = f.run("eval", "org/tiny", *text, "--json").stdout
    assert json.loads(first)["ppl"] > 1
    f.run("eval", "art", "--against", "org/tiny", *text)
    f.run("verify", "art", "--against", "org/tiny", "-q")
    f.run("inspect", "org/tiny")
    f.run("quantize", "org/tiny", "--plan", "--data", "text.txt", "-o", "no", "--set", "calibration.seqlen=64")
    f.run("calibrate", "org/tiny", "--plan", "--data", "text.txt", "-o", "no", "--set", "calibration.seqlen=64")
    f.run("sweep", "s.yaml", "-m", "org/tiny", "--plan", "--data", "text.txt", "-o", "no")
    f.run("export", "art", "--format", "dense", "-o", "card", "-q")
    assert "base_model: org/tiny\n" in (f.path / "card/README.md").read_text()


if __name__ == "__main__":
    harness.main(globals(), test_sweep.Fixture)
