#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What the documents say of the program and the tree: test_docs.py WKVQ SOURCE_DIR.

Links and paths exist; commands have options, keys and values that the program takes; tables and counts are whole; the
recipes of configs are read."""
import json
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import harness
import tiny

TOPS = ("kernels", "data", "calib", "convert", "tools", "configs", "tests", "docs", "debian")
# Words with a slash that are no paths of the tree: floors' rooms without their folder, examples, and what was rejected.
NO_PATHS = {"tools/verify"}
NO_FILES = {"eval.py"}  # LongBench's
FENCE = re.compile(r"^```\w*\n(.*?)^```", re.M | re.S)
INDENTED = re.compile(r"(?:^    \S.*\n)+", re.M)


def heading_ids(text):
    """The names by which GitHub links the headings of a page."""
    seen, ids = {}, set()
    for heading in re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.M):
        heading = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "").strip().lower()
        name = re.sub(r"[^\w\- ]", "", heading).replace(" ", "-")
        ids.add(f"{name}-{seen[name]}" if name in seen else name)
        seen[name] = seen.get(name, 0) + 1
    return ids


def command_lines(text):
    """The commands of a page's code blocks, each in one line."""
    blocks = FENCE.findall(text) + INDENTED.findall(FENCE.sub("", text))
    for block in blocks:
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            yield from (part for part in re.split(r"[;|&] ", line.split(" #")[0]) if re.search(r"\bwkvq ", part))


class Documents(harness.Bench):
    timeout = 120

    def __init__(self, wkvq, root, folder):
        super().__init__(wkvq, folder)
        self.root = pathlib.Path(root).resolve()
        names = [self.root / "README.md", self.root / "CONTRIBUTING.md", *sorted((self.root / "docs").glob("*.md"))]
        self.text = {path: path.read_text() for path in names}
        self.names = {path.name for top in TOPS for path in (self.root / top).rglob("*")}
        self.help = self.run("--help").stdout
        listed = self.help.split("Commands:\n")[1].split("\n\n")[0]
        self.commands = {line.split()[0]: self.run(line.split()[0], "--help").stdout for line in listed.splitlines()}
        self.keys = set(re.findall(r"^\.B ([a-z]+\.\w+)$", self.run("--man").stdout, re.M))
        assert len(self.text) > 10 and len(self.commands) > 10 and len(self.keys) > 50


def test_links(d):
    count = 0
    for path, text in d.text.items():
        for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text)):
            if link.startswith("http"):
                continue
            file, _, name = link.partition("#")
            target = (path.parent / file).resolve() if file else path
            assert target.exists(), f"{path.name}: {link}: no such file"
            assert not name or name in heading_ids(d.text[target]), f"{path.name}: {link}: no such heading"
            count += 1
    assert count > 100, count


def test_contents_of_decisions(d):
    text = d.text[d.root / "docs" / "decisions.md"]
    contents, entries = text.split("\n## ", 1)
    linked = re.findall(r"\]\(#([^)]+)\)", contents)
    wanted = re.findall(r"^### (.*)$", entries, re.M)
    assert linked == [name for entry in wanted for name in heading_ids(f"# {entry}")], set(linked)


def test_paths(d):
    count = 0
    for path, text in d.text.items():
        for word in re.findall(r"(?<![\w./-])(?:%s)/[\w./-]+" % "|".join(TOPS), text):
            word = word.rstrip("./_")
            if word in NO_PATHS or "NAME" in word:
                continue
            place = d.root / word
            assert place.exists() or any(place.parent.glob(f"{place.name}[._]*")), f"{path.name}: {word}: no such path"
            count += 1
        for name in re.findall(r"`([\w-]+\.(?:c|h|py|sh|cu|cases|yaml))`", text):
            assert name in d.names | NO_FILES, f"{path.name}: {name}: no such file"
    assert count > 100, count


def test_options_of_commands(d):
    count = 0
    for path, text in d.text.items():
        for line in command_lines(text):
            command, words = re.search(r"\bwkvq (\S+)(.*)", line).groups()
            if command not in d.commands:
                assert not re.match(r"[a-z]+$", command), f"{path.name}: {line}: no such command"
                continue
            for option in re.findall(r"(?<=[\s[])--?[a-z][a-z-]*", words):
                long = option.startswith("--")
                known = re.search(rf"(?<![\w-]){option}(?![\w-])", d.commands[command]) if long else True
                assert known, f"{path.name}: {line}: no option {option}"
                count += long
    assert count > 200, count


def test_keys_and_values(d):
    """Each value of a --set in a command is one that the program takes for this key by itself."""
    pairs = {}
    for path, text in d.text.items():
        for line in command_lines(text):
            for key, value in re.findall(r"(?:--set |-s )([a-z]+\.\w+)=([\w.:+-]*\w)", line):
                assert key in d.keys, f"{path.name}: {line}: no key {key}"
                if not re.search("[A-Z]", value) and not value.endswith("..") and key != "weights.mixed":
                    pairs[f"{key}={value}"] = path.name
        for key in re.findall(r"`((?:%s)\.[a-z_]+)\b" % "|".join({k.split(".")[0] for k in d.keys}), text):
            assert key in d.keys or key in d.names, f"{path.name}: no key {key}"
    assert len(pairs) > 20, pairs
    for pair, name in pairs.items():
        done = d.run("calibrate", "--plan", "--shape", "smollm2-135m", "--set", pair, want=None)
        assert done.returncode == 0 or f"{pair.split('=')[0]}: '" not in done.stderr, (name, pair, done.stderr)


def test_recipes(d):
    recipes = sorted((d.root / "configs").glob("*.yaml"))
    assert len(recipes) > 3, recipes
    for path in recipes:
        d.run("calibrate", "--plan", "--shape", "smollm2-135m", "-c", path)


def test_operations_of_recipes(d):
    """README compares what recipes take for LLaMA-2-7B."""
    rows = re.findall(r"^\| (.*?) \|.*\| ([\d.]+e\d+) \|", d.text[d.root / "README.md"], re.M)
    assert len(rows) == 3, rows
    last = []
    for how, operations in rows:
        options = re.findall(r"`(-c|--set) ([^`]+)`", how)
        words = [word for option, value in options for word in (option, d.root / value if option == "-c" else value)]
        last = [*last, *words] if how.startswith("that with") else words
        plan = json.loads(d.run("calibrate", "--plan", "--shape", "llama-2-7b", "--json", *last).stdout)
        total = plan["total_flops"] + plan.get("refinement", {"total_flops": 0})["total_flops"]
        assert f"{total:.1e}".replace("e+", "e") == operations, (how, total, operations)


def test_the_paper_s_recipe_is_the_default(d):
    """configs/w4kv4.yaml writes out defaults: a state of the defaults is resumed under it."""
    tiny.make_model(d.path / "model")
    tiny.make_text(d.path / "text.txt", 500)
    small = harness.words(["calibration.samples=2", "calibration.seqlen=32", "calibration.epochs=0", "crr.blocks=0"])
    args = ["calibrate", "model", "--data", "text.txt", "-o", "state", "-j1", *small]
    d.run(*args)
    d.run(*args, "-c", d.root / "configs" / "w4kv4.yaml")


def test_sweeps(d):
    tiny.make_model(d.path / "swept", hidden_size=128, head_dim=64, num_attention_heads=2, num_key_value_heads=2,
                    max_position_embeddings=4096)
    tiny.make_text(d.path / "long.txt", 5000)
    sweeps = sorted((d.root / "configs" / "sweeps").glob("*.yaml"))
    assert len(sweeps) > 5, sweeps
    named = d.text[d.root / "docs" / "sweeps.md"]
    for path in sweeps:
        d.run("sweep", path, "-m", "swept", "--data", "long.txt", "--eval", "long.txt", "-o", "out", "--plan")
        assert f"`{path.name}`" in named, f"docs/sweeps.md does not name {path.name}"


def test_exit_codes(d):
    codes = re.findall(r"(?:^|[ ,])(\d+) [a-z]", re.search(r"Exit codes: (.*?)\n\n", d.text[d.root / "README.md"], re.S)[1])
    shown = re.findall(r"(?:^|[ ,])(\d+) [a-z]", d.help.split("Exit status: ")[1], re.M)
    man = re.findall(r"^\.B (\d+)$", d.run("--man").stdout.split(".SH EXIT STATUS")[1].split(".SH ")[0], re.M)
    assert codes == shown == man and len(codes) == 6, (codes, shown, man)


def test_families(d):
    source = (d.root / "convert" / "checkpoint" / "hf_config.c").read_text()
    types = re.findall(r'\.model_type = "(\w+)"', source)
    rows = re.findall(r"^\| (\w+)(?: \(.*?\))? \|", d.text[d.root / "docs" / "method.md"], re.M)
    assert len(types) > 8 and set(types) <= set(rows), set(types) - set(rows)


def test_export_formats(d):
    formats = re.findall(r"^([a-z-]+) ", d.run("export", "--format", "list").stdout, re.M)
    page = d.text[d.root / "docs" / "export.md"].split("\n## Formats\n")[1].split("\n\n")[0]
    assert re.findall(r"^\| `([a-z-]+)`", page, re.M) == formats, formats


def test_packages(d):
    """README's build needs what `tools/dev/packages build` installs, and so does the Debian package."""
    meson = (d.root / "meson.build").read_text()
    needed = set(re.findall(r"'(lib\S+-dev|zlib1g-dev)'", meson.split("package_of = {")[1].split("error(")[0]))
    assert len(needed) > 6, needed
    installed = re.search(r'^build="(.*?)"', (d.root / "tools" / "dev" / "packages").read_text(), re.M | re.S)[1].split()
    control = (d.root / "debian" / "control").read_text()
    stated = re.search(r"^Build-Depends:(.*?)^\S", control, re.M | re.S)[1].replace(",", " ").split()
    assert needed <= set(installed) and needed <= set(stated), (needed - set(installed), needed - set(stated))
    commands = d.text[d.root / "README.md"].split("\n## Build\n")[1].split("```")[1]
    assert commands.index("tools/dev/packages build") < commands.index("meson setup"), commands
    assert "-Dtests=false" in commands or "libcmocka-dev" in installed, commands


def test_fuzz_targets(d):
    targets = re.search(r"^all='(.*)'", (d.root / "tests" / "fuzz" / "run").read_text(), re.M)[1].split()
    page = d.text[d.root / "docs" / "security.md"]
    assert f"`tests/fuzz` has {len(targets)} libFuzzer targets" in page, len(targets)


def test_rooms(d):
    """README's map and the table of rooms name the folders of convert and tools."""
    pages = {"README.md": d.text[d.root / "README.md"].split("\n## Map\n")[1],
             "architecture.md": d.text[d.root / "docs" / "architecture.md"]}
    for floor in ("convert", "tools"):
        rooms = {path.name for path in (d.root / floor).iterdir() if path.is_dir() and path.name != "__pycache__"}
        for name, text in pages.items():
            missing = {room for room in rooms if not re.search(rf"`(?:tools/)?{room}`", text)}
            assert not missing, f"{name} lacks {missing} of {floor}"


if __name__ == "__main__":
    harness.main(globals(), Documents, arguments=2)
