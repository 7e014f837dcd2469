#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What the program says of itself: test_help.py WKVQ SOURCE_DIR.

--help of every command, the man page, and the completion, whose function bash runs here."""
import os
import pathlib
import pty
import re
import select
import shutil
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import harness


class Program(harness.Bench):
    timeout = 60

    def __init__(self, wkvq, root, folder):
        if not shutil.which("bash"):
            raise harness.Skip("no bash")
        super().__init__(wkvq, folder)
        self.root = pathlib.Path(root).resolve()
        self.man = self.run("--man").stdout
        self.commands = re.findall(r"^\.SS wkvq (\S+) ", self.man, re.M)
        assert len(self.commands) > 10, self.commands


def test_examples(p):
    """Every example is one line of --help, or several that end in a backslash: it can be pasted."""
    count = 0
    for command in p.commands:
        source = p.man.split(f".SS wkvq {command} ")[1].split(".SS ")[0]
        example = re.search(r"^\.nf\n(.*?)^\.fi", source, re.M | re.S)
        assert example, f"{command} has no example"
        shown = p.run(command, "--help").stdout.splitlines()
        lines = [line.replace("\\-", "-").replace("\\e", "\\") for line in example[1].splitlines() if line]
        for before, line in zip([""] + lines, lines):
            assert line in shown, f"{command} --help breaks: {line}"
            assert before.endswith("\\") or "wkvq " in line, f"{command}: not a command: {line}"
            count += 1
        assert not lines[-1].endswith("\\"), (command, lines[-1])
    assert count > len(p.commands), count


def test_no_blank_entries(p):
    """A text that fills its last line would be followed by a line of blanks."""
    for command in p.commands:
        for number, line in enumerate(p.run(command, "--help").stdout.splitlines()):
            assert not line or line.strip(), f"{command} --help, line {number + 1}: only blanks"


def test_options_without_a_command(p):
    shown = p.run("--help").stdout
    for word in ("--version", "--man", "--completion", "--print-reference"):
        assert f"  {word} " in shown, word
        assert ".B " + word.replace("-", "\\-") + "\n" in p.man, word
        assert p.run(word).stdout, word


def test_environment(p):
    """Each variable that the program reads is in the man page. Those of mpirun are its own affair."""
    launcher = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK"}
    told = p.man.split(".SH ENVIRONMENT")[1]
    names = {"CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV", "CONDA_PREFIX"}  # of a table in cuda_find.cu
    for folder in ("kernels", "data", "calib", "convert", "tools"):
        for path in (p.root / folder).rglob("*.c*"):
            if "emu" in path.parts:
                continue
            text = path.read_text()
            names |= set(re.findall(r'getenv\("(\w+)"', text)) | set(re.findall(r'find_library\(\w+, "(\w+)"', text))
            names |= {v for v in re.findall(r'"([A-Z]+(?:_[A-Z]+)+)"', text) if path.name == "hub_cache.c"}
    assert len(names) > 10 + len(launcher), names
    for name in names - launcher:
        assert name in told, f"{name} is not under ENVIRONMENT"


class Completion:
    def __init__(self, p):
        self.p, self.script = p, p.run("--completion").stdout

    def __call__(self, *words):
        """What bash would offer for the last word, of a line that it split into these."""
        ask = 'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _wkvq; printf "%s\\n" "${COMPREPLY[@]}"'
        done = self.p.call(["bash", "-c", self.script + ask, "bash", *words])
        assert not done.stderr, (words, done)
        return done.stdout.split("\n")[:-1] if done.stdout.strip() else []


def test_completed_words(p):
    complete = Completion(p)
    assert complete("wkvq", "") == ["--help", "--version", "--print-reference", "--man", "--completion"] + p.commands
    assert complete("wkvq", "exp") == ["export"] and complete("wkvq", "help", "exp") == ["export"]
    assert complete("wkvq", "quantize", "--weights-f") == ["--weights-from="]
    for command in p.commands:
        offered = set(complete("wkvq", command, "--"))
        options = p.run(command, "--help").stdout.split("\nMandatory ")[0]
        names = set(re.findall(r"^ {2,6}(?:-., )?(--[a-z-]+)", options, re.M)) - {"--usage"}
        assert {word.rstrip("=") for word in offered} == names, (command, offered ^ names)


def test_completed_values(p):
    complete = Completion(p)
    assert complete("wkvq", "eval", "--task", "") == ["ppl", "zeroshot", "longbench"]
    assert complete("wkvq", "eval", "--task", "=", "zero") == ["zeroshot"]
    assert complete("wkvq", "eval", "--task", "=") == ["ppl", "zeroshot", "longbench"]
    assert complete("wkvq", "export", "--format", "") == ["compressed-tensors", "awq", "gguf", "dense", "list"]
    assert complete("wkvq", "quantize", "-o", "out", "--device", "c") == ["cpu", "cuda"]
    assert complete("wkvq", "export", "a", "--gguf-pre", "smol") == ["smollm"]


def test_completed_keys(p):
    complete = Completion(p)
    keys = re.findall(r"^\.B ([a-z]+\.\w+)$", p.man, re.M)
    assert len(keys) > 50, keys
    assert sorted(complete("wkvq", "quantize", "--set", "")) == sorted(["preset="] + [key + "=" for key in keys])
    assert complete("wkvq", "quantize", "--set", "weights.g") == ["weights.group_size="]
    assert complete("wkvq", "quantize", "-s", "weights.g") == ["weights.group_size="]
    assert complete("wkvq", "quantize", "--set", "=", "weights.g") == ["weights.group_size="]
    assert complete("wkvq", "quantize", "--set", "weights.method", "=", "") == ["rtn", "lwc", "gptq", "given"]
    assert complete("wkvq", "quantize", "--set", "weights.method", "=") == ["rtn", "lwc", "gptq", "given"]
    assert complete("wkvq", "quantize", "--set", "=", "weights.method", "=", "g") == ["gptq", "given"]
    assert complete("wkvq", "quantize", "--set", "preset", "=", "paper-w4k") == ["paper-w4kv4"]
    assert len(complete("wkvq", "quantize", "--set", "preset", "=", "")) == 4
    assert complete("wkvq", "quantize", "--set", "kv.past_only", "=", "") == ["true", "false"]
    assert complete("wkvq", "quantize", "--set", "weights.bits", "=", "4", "--dev") == ["--device="]
    assert complete("wkvq", "inspect", "--set", "weights.g") == []


def test_completed_files(p):
    """A word of no known kind is left to readline, which knows how to quote a name with blanks."""
    complete = Completion(p)
    assert "complete -o default -F _wkvq wkvq\n" in complete.script
    (p.path / "mödel ü 模型").mkdir()
    for words in (("inspect", "m"), ("quantize", "m"), ("quantize", "--data", "m"), ("quantize", "--data", "=", "m")):
        assert complete("wkvq", *words) == [], words
    assert typed(complete.script, p.path, "wkvq inspect m\t").endswith("wkvq inspect mödel\\ ü\\ 模型/")


def typed(script, folder, keys):
    """The line of an interactive bash, after keys were typed in a terminal."""
    (folder / ".rc").write_text("PS1='> '\nbind 'set enable-bracketed-paste off'\n" + script)
    child, terminal = pty.fork()
    if not child:
        os.chdir(folder)
        os.environ.update(LC_ALL="C.UTF-8", TERM="dumb", COLUMNS="200", INPUTRC="/dev/null")
        os.execvp("bash", ["bash", "--rcfile", ".rc", "-i"])
    shown, end = b"", time.time() + 30

    def read_until(done):
        nonlocal shown
        while not done() and time.time() < end:
            if select.select([terminal], [], [], 0.2)[0]:
                shown += os.read(terminal, 4096)

    read_until(lambda: shown.endswith(b"> "))
    os.write(terminal, keys.encode())
    read_until(lambda: shown.rstrip(b"\a").endswith(b"/"))
    os.close(terminal)
    os.waitpid(child, 0)
    return shown.decode(errors="replace").rstrip("\a")


if __name__ == "__main__":
    harness.main(globals(), Program, arguments=2)
