#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs cases of the command line: run.py WKVQ FILE.cases...

A case is a stanza of lines, ended by a blank one. It runs in a scratch folder of its own:

    case NAME
    make KIND ...      prepare input; the make_* functions below list the kinds
    run ARGS           the command under test; '\\xff' is that byte
    stdin FILE         is piped into it
    exit N             expected status (default 0)
    stderr TEXT        must occur in stderr, * matches any text within a line; repeatable
    stdout TEXT        the same for stdout
    silent TEXT        must not occur in stderr
    no PATH            must not exist afterwards

If the status is 2, stdout must be empty unless the case has a line for it, and stderr must end in at
least two lines: what was wrong, and what to do. No case may leave a temporary file, or be killed by a signal."""
import bz2
import gzip
import json
import lzma
import os
import pathlib
import re
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import foreign
import tiny
from forge import agree, sealed

TIMEOUT_S = 120
STATE_SETTINGS = ["calibration.seqlen=32", "calibration.samples=2", "calibration.epochs=1",
                  "crr.blocks=1"]


class Scratch:
    """One case's folder, and what can be made in it."""

    def __init__(self, wkvq, base, path):
        self.wkvq, self.base, self.path = wkvq, base, path
        self.writers = []  # into named pipes

    def at(self, name):
        return self.path / name

    def run(self, args, stdin=None):
        source = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
        return subprocess.run([self.wkvq, *args], cwd=self.path, capture_output=True,
                              timeout=TIMEOUT_S, **source)

    # --- the kinds of `make` lines ---

    def make_model(self, name, *changes):
        """model DIR [KEY=JSON...]: a tiny model, with other values in its configuration."""
        if changes:
            pairs = (c.split("=", 1) for c in changes)
            tiny.make_model(self.at(name), **{k: json.loads(v) for k, v in pairs})
        else:
            shutil.copytree(self.base / "model", self.at(name))

    def make_packed(self, name, form, *options):
        """packed DIR FORM [KEY=JSON...]: a checkpoint that another tool quantized; foreign.make()'s options."""
        pairs = (o.split("=", 1) for o in options)
        foreign.make(self.at(name), form, **{k: json.loads(v) for k, v in pairs})

    def make_text(self, name, words="600"):
        """text FILE [WORDS]"""
        tiny.make_text(self.at(name), int(words))

    def make_ok(self, *args):
        """ok ARGS: run wkvq, which must succeed."""
        done = self.run(args)
        if done.returncode:
            raise RuntimeError(f"make ok {' '.join(args)}: exit {done.returncode}: "
                               f"{done.stderr.decode(errors='replace')}")

    def make_set(self, name, path, value="-"):
        """set FILE.json A.B.0 [JSON]: change a member, or remove it; A|B|0 where names hold
        dots."""
        doc = json.loads(self.at(name).read_text())
        parts = path.split("|" if "|" in path else ".")
        *parents, last = [int(p) if p.isdigit() else p for p in parts]
        node = doc
        for p in parents:
            node = node[p]
        if value == "-":
            del node[last]
        elif isinstance(node, list) and last == len(node):
            node.append(json.loads(value))
        else:
            node[last] = json.loads(value)
        state = doc.get("format") == "wkvq-state" and "manifest_crc32" in doc
        self.at(name).write_bytes(sealed(doc) if state else json.dumps(doc).encode())

    def make_write(self, name, text=""):
        r"""write FILE TEXT: with \n, \t and \xHH."""
        data = text.encode("latin-1", "backslashreplace").decode("unicode_escape")
        self.at(name).write_bytes(data.encode("latin-1"))

    def make_add(self, name, text):
        """add FILE TEXT: append TEXT."""
        old = self.at(name).read_bytes()
        self.make_write(name, text)
        self.at(name).write_bytes(old + self.at(name).read_bytes())

    def make_cut(self, name, size):
        """cut FILE N: keep N bytes; -N: drop the last N."""
        self.at(name).write_bytes(self.at(name).read_bytes()[:int(size)])

    def make_flip(self, name, offset):
        """flip FILE OFFSET: invert a byte; negative offsets count from the end."""
        data = bytearray(self.at(name).read_bytes())
        data[int(offset)] ^= 0xFF
        self.at(name).write_bytes(data)

    def make_remove(self, name):
        self.at(name).unlink()

    def make_dir(self, name):
        self.at(name).mkdir(parents=True)

    def make_move(self, old, new):
        self.at(old).rename(self.at(new))

    def make_copy(self, old, new):
        if self.at(old).is_dir():
            shutil.copytree(self.at(old), self.at(new))
        else:
            shutil.copy(self.at(old), self.at(new))

    def make_gzip(self, name):
        """gzip FILE: FILE.gz beside it."""
        with open(self.at(name + ".gz"), "wb") as f:
            with gzip.GzipFile(filename="", mode="wb", fileobj=f, mtime=0) as z:
                z.write(self.at(name).read_bytes())

    def make_compress(self, name, suffix):
        """compress FILE xz|bz2: FILE.xz or FILE.bz2 beside it."""
        module = {"xz": lzma, "bz2": bz2}[suffix]
        self.at(f"{name}.{suffix}").write_bytes(module.compress(self.at(name).read_bytes()))

    def make_rows(self, name, field="text", count="300"):
        """rows FILE [FIELD [COUNT]]: JSON lines with a text in FIELD."""
        rows = ({field: f"row {i} of the text, and its words\n", "id": i} for i in range(int(count)))
        self.at(name).write_text("".join(json.dumps(r) + "\n" for r in rows))

    def make_gunzip(self, name):
        """gunzip FILE.gz: FILE beside it."""
        self.at(name[:-3]).write_bytes(gzip.decompress(self.at(name).read_bytes()))

    def make_zeros(self, name, mebibytes):
        """zeros FILE.gz|FILE.zip MIB: an archive of so many zero bytes."""
        data = bytes(int(mebibytes) << 20)
        if name.endswith(".gz"):
            self.at(name).write_bytes(gzip.compress(data, mtime=0))
        else:
            with zipfile.ZipFile(self.at(name), "w", zipfile.ZIP_DEFLATED) as z:
                z.writestr(zipfile.ZipInfo("t.txt"), data, zipfile.ZIP_DEFLATED)

    def make_zip(self, name, *members):
        r"""zip FILE.zip NAME=TEXT...: stored members; \xHH in both."""
        with zipfile.ZipFile(self.at(name), "w") as z:
            for m in members:
                member, text = m.encode().decode("unicode_escape").split("=", 1)
                z.writestr(zipfile.ZipInfo(member), text)

    def make_repeat(self, name, count, text):
        """repeat FILE COUNT TEXT: append TEXT that many times."""
        data = text.encode("latin-1", "backslashreplace").decode("unicode_escape")
        with open(self.at(name), "ab") as f:
            f.write(data.encode("latin-1") * int(count))

    def make_pipe(self, name, source=None):
        """pipe FILE [SOURCE]: a named pipe without a writer, or one that yields SOURCE."""
        os.mkfifo(self.at(name))
        if source:
            self.writers.append(subprocess.Popen(["cp", "--", source, name], cwd=self.path))

    def make_link(self, target, name):
        self.at(name).symlink_to(target)

    def make_golden(self, source, name):
        """golden PATH FILE: a copy from tests/golden."""
        shutil.copy(HERE.parent / "golden" / source, self.at(name))

    # Valid artifacts and states are made once from the base's model; `make model m` copies that model.

    def sound(self, kind, *args):
        path = self.base / kind
        if not path.exists():
            maker = Scratch(self.wkvq, self.base, self.base)
            maker.make_text("t.txt")
            maker.make_ok(*args, "-o", kind)
        return path

    def make_artifact(self, name):
        """artifact DIR: of the model, with t.txt beside it."""
        shutil.copytree(self.sound("artifact", "convert", "model"), self.at(name))
        self.make_text("t.txt")

    def make_state(self, name):
        """state DIR: of the model and t.txt, with both beside it, as m and t.txt."""
        args = ["calibrate", "model", "--data", "t.txt"]
        for s in STATE_SETTINGS:
            args += ["--set", s]
        shutil.copytree(self.sound("state", *args), self.at(name))
        self.make_model("m")
        self.make_text("t.txt")

    def make_agree(self, name):
        """agree DIR: correct an artifact's manifest for all its files and tensors."""
        agree(self.at(name))

    def make_manifest(self, name, path, value="-"):
        """manifest DIR A.B.0 [JSON]: like set, and with a correct CRC-32 at the end."""
        file = f"{name}/manifest.json"
        self.make_set(file, path, value)
        self.at(file).write_bytes(sealed(json.loads(self.at(file).read_text())))

    def make_recrc(self, name, block):
        """recrc STATE BLOCK: correct the CRC-32 of a block in a state's manifest."""
        path = self.at(name) / "manifest.json"
        doc = json.loads(path.read_text())
        data = (self.at(name) / f"block-{int(block):04}.safetensors").read_bytes()
        doc["done"][int(block)].update(bytes=len(data), crc32=f"{zlib.crc32(data):08x}")
        path.write_bytes(sealed(doc))

    def make_length(self, name, value):
        """length FILE.safetensors N: another header length."""
        data = self.at(name).read_bytes()
        self.at(name).write_bytes(struct.pack("<Q", int(value)) + data[8:])

    def make_header(self, name, tensor, field, value="-"):
        """header FILE.safetensors TENSOR FIELD [JSON]: change a header entry, or remove it;
        FIELD * is the whole entry."""
        data = self.at(name).read_bytes()
        (size,) = struct.unpack_from("<Q", data)
        header = json.loads(data[8:8 + size])
        if field == "*":
            if value == "-":
                del header[tensor]
            else:
                header[tensor] = json.loads(value)
        elif value == "-":
            del header[tensor][field]
        else:
            header[tensor][field] = json.loads(value)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self.at(name).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size:])

    def make_poke(self, name, tensor, index, hexbytes):
        """poke FILE.safetensors TENSOR BYTE HEX: overwrite bytes of a tensor."""
        data = bytearray(self.at(name).read_bytes())
        (size,) = struct.unpack_from("<Q", data)
        begin = json.loads(data[8:8 + size])[tensor]["data_offsets"][0]
        new = bytes.fromhex(hexbytes)
        at = 8 + size + begin + int(index)
        data[at:at + len(new)] = new
        self.at(name).write_bytes(data)


def parse(path):
    """Stanzas of a file as (name, [(word, rest)])."""
    cases, lines = [], []
    for line in [*path.read_text().splitlines(), ""]:
        if line.startswith("#"):
            continue
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            lines.append((word, rest))
        elif lines:
            if lines[0][0] != "case":
                raise SystemExit(f"{path}: a stanza starts with '{lines[0][0]}', want 'case'")
            cases.append((lines[0][1], lines[1:]))
            lines = []
    return cases


def occurs(pattern, text):
    return re.search(".*".join(re.escape(p) for p in pattern.split("*")), text) is not None


def check(done, lines, scratch):
    """Yields a sentence for everything that is wrong with a finished run."""
    out = done.stdout.decode(errors="replace")
    err = done.stderr.decode(errors="replace")
    want = next((int(rest) for word, rest in lines if word == "exit"), 0)
    if done.returncode != want:
        yield f"exit {done.returncode}, want {want}"
    if want == 2 and out and all(word != "stdout" for word, _ in lines):
        yield f"stdout is not empty: {out[:200]!r}"
    if want == 2 and len(err.splitlines()) < 2:
        yield "stderr has no second line with what to do"
    for word, rest in lines:
        if word == "stderr" and not occurs(rest, err):
            yield f"stderr lacks: {rest}"
        if word == "silent" and occurs(rest, err):
            yield f"stderr has: {rest}"
        if word == "stdout" and not occurs(rest, out):
            yield f"stdout lacks: {rest}"
        if word == "no" and scratch.at(rest).exists():
            yield f"{rest} exists"
    for left in scratch.path.rglob("*.tmp.*"):
        yield f"left behind: {left.relative_to(scratch.path)}"


def run_case(wkvq, base, lines):
    with tempfile.TemporaryDirectory() as folder:
        scratch = Scratch(wkvq, base, pathlib.Path(folder))
        args = stdin = None
        for word, rest in lines:
            if word == "make":
                kind, *words = shlex.split(rest)
                getattr(scratch, "make_" + kind)(*words)
            elif word == "run":
                args = [a.replace("\\xff", "\udcff") for a in shlex.split(rest)]
            elif word == "stdin":
                stdin = scratch.at(rest).read_bytes()
            elif word not in ("exit", "stderr", "silent", "stdout", "no"):
                raise SystemExit(f"unknown line: {word} {rest}")
        try:
            done = scratch.run(args, stdin)
        finally:
            for writer in scratch.writers:
                writer.kill()
                writer.wait()
        wrong = list(check(done, lines, scratch))
        if wrong:
            shown = (done.stdout[-1500:] + b"--- stderr\n" + done.stderr[-1500:])
            wrong.append(shown.decode(errors="replace"))
        return wrong


def main():
    wkvq = str(pathlib.Path(sys.argv[1]).resolve())
    only = None
    files = [pathlib.Path(a) for a in sys.argv[2:]]
    if len(files) > 1 and not files[-1].exists():
        only = str(files.pop())
    count = failed = 0
    with tempfile.TemporaryDirectory() as folder:
        base = pathlib.Path(folder)
        tiny.make_model(base / "model")
        for name, lines in (case for f in files for case in parse(f)):
            if only and name != only:
                continue
            count += 1
            try:
                wrong = run_case(wkvq, base, lines)
            except (RuntimeError, OSError, KeyError, subprocess.TimeoutExpired) as e:
                wrong = [str(e)]
            failed += bool(wrong)
            if wrong:
                print(f"FAIL {name}\n  " + "\n  ".join(wrong))
    print(f"{count - failed} of {count} cases pass")
    return failed != 0 or count == 0


if __name__ == "__main__":
    sys.exit(main())
