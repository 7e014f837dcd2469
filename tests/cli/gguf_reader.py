# SPDX-License-Identifier: MIT
"""A GGUF reader written from the format's description, in the standard library."""
import math
import struct

SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
ALIGNMENT = 32
# number: (name, columns of a block, its bytes)
TYPES = {0: ("F32", 1, 4), 1: ("F16", 1, 2), 3: ("Q4_1", 32, 20), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34),
         30: ("BF16", 1, 2)}
LOW = bytes(b & 15 for b in range(256))
HIGH = bytes(b >> 4 for b in range(256))


class Gguf:
    """keys: {name: value}. tensors: {name: (type, shape with rows first, bytes)}, in the file's order."""

    def __init__(self, path):
        self.raw = path.read_bytes()
        self.at = 0
        magic, version, n_tensors, n_keys = self.take("<4sIQQ")
        assert magic == b"GGUF" and version == 3, (magic, version)
        self.keys = {}
        for _ in range(n_keys):
            name = self.string()
            assert name not in self.keys, name
            self.keys[name] = self.value(self.take("<I")[0])
        infos = [self.info() for _ in range(n_tensors)]
        start = -(-self.at // ALIGNMENT) * ALIGNMENT
        assert not any(self.raw[self.at:start]), "padding of the header"
        self.tensors, end = {}, 0
        for name, kind, shape, offset in infos:
            assert offset == end and offset % ALIGNMENT == 0, name
            assert name not in self.tensors, name
            title, columns, block = TYPES[kind]
            assert shape[-1] % columns == 0, name
            size = shape[-1] // columns * block * math.prod(shape[:-1])
            self.tensors[name] = title, shape, self.raw[start + offset:start + offset + size]
            end = -(-(offset + size) // ALIGNMENT) * ALIGNMENT
            assert not any(self.raw[start + offset + size:start + end]), f"padding of {name}"
        assert start + end == len(self.raw), "bytes after the last tensor"

    def take(self, form):
        value = struct.unpack_from(form, self.raw, self.at)
        self.at += struct.calcsize(form)
        return value

    def string(self):
        n = self.take("<Q")[0]
        self.at += n
        return self.raw[self.at - n:self.at].decode()

    def value(self, kind):
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.take(SCALARS[kind])[0]
        item, n = self.take("<IQ")
        if item == STRING:
            return [self.string() for _ in range(n)]
        return list(self.take(f"<{n}{SCALARS[item][1]}"))

    def info(self):
        name = self.string()
        dims = self.take(f"<{self.take('<I')[0]}Q")
        kind, offset = self.take("<IQ")
        return name, kind, list(reversed(dims)), offset

    def rows(self, name):
        """The bytes of each row."""
        _, shape, data = self.tensors[name]
        n = len(data) // shape[0]
        return [data[i * n:(i + 1) * n] for i in range(shape[0])]

    def floats(self, name):
        title, _, data = self.tensors[name]
        if title == "BF16":
            return [struct.unpack("<f", b"\0\0" + data[i:i + 2])[0] for i in range(0, len(data), 2)]
        kind = {"F16": "e", "F32": "f"}[title]
        return list(struct.unpack(f"<{len(data) // struct.calcsize(kind)}{kind}", data))


def blocks(title, row):
    """(d, m, 32 integers) of every block of a row: a value is d q + m."""
    size = {"Q4_1": 20, "Q5_1": 24, "Q8_0": 34}[title]
    for at in range(0, len(row), size):
        b = row[at:at + size]
        if title == "Q8_0":
            yield struct.unpack_from("<e", b)[0], 0.0, struct.unpack_from("<32b", b, 2)
            continue
        d, m = struct.unpack_from("<ee", b)
        nibbles = b[-16:]
        q = nibbles.translate(LOW) + nibbles.translate(HIGH)
        if title == "Q5_1":
            high = struct.unpack_from("<I", b, 4)[0]
            q = [x | (high >> i & 1) << 4 for i, x in enumerate(q)]
        yield d, m, q
