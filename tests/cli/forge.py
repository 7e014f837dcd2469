# SPDX-License-Identifier: MIT
"""Artifacts with other values than the program gave them, whose checksums hold."""
import json
import struct
import zlib


def sealed(manifest):
    """A manifest with the checksum of its new text."""
    manifest.pop("manifest_crc32", None)
    text = json.dumps(manifest).encode()[:-1] + b",\n"
    return text + b'"manifest_crc32":"%08x"\n}\n' % zlib.crc32(text)


def agree(folder):
    """Corrects an artifact's manifest for all its files and tensors."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for file, entry in manifest["files"].items():
        data = folder.joinpath(file).read_bytes()
        entry.update(bytes=len(data), crc32=f"{zlib.crc32(data):08x}")
        if file.endswith(".safetensors"):
            (size,) = struct.unpack_from("<Q", data)
            for name, t in json.loads(data[8:8 + size]).items():
                begin, end = t.get("data_offsets", (0, 0))
                crc = zlib.crc32(data[8 + size + begin:8 + size + end])
                if name in manifest["tensors"]:
                    manifest["tensors"][name].update(bytes=end - begin, crc32=f"{crc:08x}", dtype=t["dtype"],
                                                     shape=t["shape"])
    (folder / "manifest.json").write_bytes(sealed(manifest))


def change_tensors(folder, ending, form, value):
    """Replaces every number x of an artifact's tensors with this ending by value(x). form: the number's, as struct has it."""
    path = folder / "model.safetensors"
    raw = bytearray(path.read_bytes())
    n = struct.unpack_from("<Q", raw)[0]
    for name, t in json.loads(raw[8:8 + n]).items():
        if not name.endswith(ending):
            continue
        begin, end = (8 + n + o for o in t["data_offsets"])
        for at in range(begin, end, struct.calcsize(form)):
            struct.pack_into(form, raw, at, value(struct.unpack_from(form, raw, at)[0]))
    path.write_bytes(raw)
    agree(folder)
