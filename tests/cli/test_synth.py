#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Random-weight checkpoints: test_synth.py WKVQ DEMO_DIR.

The seed determines the bytes, for any number of threads and shards. The values have the documented
distribution. The checkpoint loads, converts and generates."""
import json
import math
import pathlib
import statistics
import struct
import sys
import zlib

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import harness

SHAPE = ["--shape", "smollm2-135m", "--layers", "2"]
TENSORS_CRC = 0x0BCAE3F0  # of seed 0, in the order of the file
FILES = {"config.json", "model.safetensors"}


class Bench(harness.Bench):
    def __init__(self, wkvq, demo, folder):
        super().__init__(wkvq, folder)
        self.demo = pathlib.Path(demo).resolve()

    def synth(self, out, *more):
        """Makes a checkpoint, unless a test has made it, and returns its folder."""
        if not (self.path / out / "config.json").exists():
            self.run("synth", *SHAPE, "-o", out, *more)
        return self.path / out

    def one(self):
        return self.synth("one", "-j", 1)

    def split(self):
        return self.synth("split", "--shard", "4M", "--tokenizer", self.demo)


def tensors(folder):
    """Returns {name: (shape, bytes)} in the order of the files."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        data = file.read_bytes()
        n, = struct.unpack_from("<Q", data)
        header = json.loads(data[8:8 + n])
        header.pop("__metadata__")
        for name, about in header.items():
            begin, end = about["data_offsets"]
            assert about["dtype"] == "F16" and end - begin == 2 * math.prod(about["shape"]), name
            found[name] = about["shape"], data[8 + n + begin:8 + n + end]
    return found


def crc_of(folder):
    crc = 0
    for _, data in tensors(folder).values():
        crc = zlib.crc32(data, crc)
    return crc


def test_same_seed_same_bytes(b):
    one = b.one()
    assert {f.name for f in one.iterdir()} == FILES, list(one.iterdir())
    assert crc_of(one) == TENSORS_CRC, f"{crc_of(one):#x}"
    three = b.synth("three", "-j", 3)
    for name in FILES:
        assert (one / name).read_bytes() == (three / name).read_bytes(), name
    assert crc_of(b.synth("other", "--seed", 1)) != TENSORS_CRC


def draw(seed, tensor, row, n):
    """A row by its definition: SplitMix64, seeded by seed, tensor and row; a quantile for each 16 bits."""
    state, mask = seed, (1 << 64) - 1

    def word():
        nonlocal state
        state = z = (state + 0x9E3779B97F4A7C15) & mask
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        return z ^ z >> 31

    for place in (tensor, row, 0):
        state = word() ^ place
    bits = [w >> 16 * k & 0xFFFF for w in (word() for _ in range(n // 4)) for k in range(4)]
    values = (0.02 * statistics.NormalDist().inv_cdf((b + 0.5) / 65536) for b in bits)
    return struct.unpack(f"<{n}e", struct.pack(f"<{n}e", *(struct.unpack("f", struct.pack("f", v))[0] for v in values)))


def test_rows_by_definition(b):
    for i, (name, (shape, data)) in enumerate(tensors(b.one()).items()):
        if name in ("model.embed_tokens.weight", "model.layers.1.mlp.gate_proj.weight"):
            for row in (0, 7, shape[0] - 1):
                got = struct.unpack_from(f"<{shape[1]}e", data, 2 * row * shape[1])
                assert got == draw(0, i, row, shape[1]), (name, row)


def test_shards(b):
    """The same tensors; no file exceeds the limit unless one tensor does."""
    split = b.split()
    files = sorted(split.glob("*.safetensors"))
    assert len(files) > 3 and crc_of(split) == TENSORS_CRC, files
    index = json.loads((split / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {f.name for f in files}
    assert index["metadata"]["total_size"] == sum(len(data) for _, data in tensors(split).values())
    for file in files[1:]:  # the first holds the embedding
        assert file.stat().st_size < (4 << 20) + 4096, file
    assert (split / "tokenizer.json").read_bytes() == (b.demo / "tokenizer.json").read_bytes()
    assert json.loads((split / "config.json").read_text())["eos_token_id"] == 0  # the tokenizer's


def moments(values):
    n = len(values)
    mean = sum(values) / n
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / n)
    return mean, deviation, sum((v - mean) ** 4 for v in values) / n / deviation ** 4


def rows_of(tensor, count):
    shape, data = tensor
    return [struct.unpack_from(f"<{shape[-1]}e", data, 2 * r * shape[-1]) for r in range(count)]


def test_distribution(b):
    """The moments are within five standard errors of a normal sample; a few rows are six times as large."""
    all_of = tensors(b.one())
    gate = [v for row in rows_of(all_of["model.layers.1.mlp.gate_proj.weight"], 1000) for v in row]
    mean, deviation, kurtosis = moments(gate)
    root = math.sqrt(len(gate))
    assert abs(mean) <= 5 * 0.02 / root, mean
    assert abs(deviation / 0.02 - 1) <= 5 / math.sqrt(2) / root, deviation
    assert abs(kurtosis - 3) <= 5 * math.sqrt(24) / root, kurtosis
    assert 0.08 <= max(gate) <= 0.09 and -0.09 <= min(gate) <= -0.08, (min(gate), max(gate))
    norm = rows_of(all_of["model.norm.weight"], 1)[0]
    assert abs(moments(norm)[0] - 1) <= 5 * 0.1 / math.sqrt(len(norm))
    for name, rows in (("self_attn.o_proj", 576), ("mlp.down_proj", 576), ("self_attn.k_proj", 192)):
        sigma = [moments(row)[1] for row in rows_of(all_of[f"model.layers.0.{name}.weight"], rows)]
        large = [i for i, s in enumerate(sigma) if s > 0.06]
        assert 1 <= len(large) <= 3, (name, large)
        for i, s in enumerate(sigma):
            assert abs(s / (0.12 if i in large else 0.02) - 1) < 0.2, (name, i, s)
    first = rows_of(all_of["model.layers.0.mlp.up_proj.weight"], 2)
    again = rows_of(all_of["model.layers.1.mlp.up_proj.weight"], 1)
    assert first[0] != first[1] and first[0] != again[0], "rows repeat"


def test_runs(b):
    """The checkpoint passes through conversion and the packed runtime."""
    about = json.loads(b.run("inspect", b.split(), "--json").stdout)
    assert about["kind"] == "checkpoint", about
    b.run("convert", "split", "-o", "packed")
    b.run("verify", "packed", "--against", "split", "--data", b.demo / "heldout.txt", "--ctx", 32)
    b.run("generate", "packed", "-p", "The", "-n", 4)


def test_leftovers(b):
    """A directory that is merely named like a killed run's is kept; an empty directory is used."""
    left = b.path / "late.tmp.4194999"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    (b.path / "late").mkdir()
    late = b.synth("late")
    assert (left / "model.safetensors").read_bytes() == b"half" and crc_of(late) == TENSORS_CRC


if __name__ == "__main__":
    harness.main(globals(), Bench, arguments=2)
