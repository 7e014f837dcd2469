# SPDX-License-Identifier: MIT
"""The forward pass of tiny.py's models in plain Python, which gives their expected logits."""
import json
import math
import pathlib
import struct
from operator import mul


def dot(a, b):
    return sum(map(mul, a, b))


class Tiny:
    def __init__(self, path):
        path = pathlib.Path(path)
        self.config = json.loads((path / "config.json").read_text())
        data = (path / "model.safetensors").read_bytes()
        (size,) = struct.unpack_from("<Q", data)
        self.tensor = {}
        for name, entry in json.loads(data[8:8 + size]).items():
            begin, end = (8 + size + n for n in entry["data_offsets"])
            flat = struct.unpack(f"<{(end - begin) // 4}f", data[begin:end])
            cols = entry["shape"][-1]
            rows = [flat[i:i + cols] for i in range(0, len(flat), cols)]
            self.tensor[name] = rows if len(entry["shape"]) == 2 else rows[0]

    def norm(self, x, name):
        scale = 1 / math.sqrt(dot(x, x) / len(x) + self.config["rms_norm_eps"])
        return [v * scale * g for v, g in zip(x, self.tensor[name])]

    def linear(self, x, name):
        return [dot(row, x) for row in self.tensor[name]]

    def heads(self, x, position=None):
        """Splits x into heads and applies the rotary embedding of its position."""
        d = self.config["head_dim"]
        out = [x[i:i + d] for i in range(0, len(x), d)]
        if position is None:
            return out
        turned = []
        for h in out:
            new = list(h)
            for i in range(d // 2):
                angle = position * self.config["rope_theta"] ** (-2 * i / d)
                c, s = math.cos(angle), math.sin(angle)
                new[i] = h[i] * c - h[i + d // 2] * s
                new[i + d // 2] = h[i + d // 2] * c + h[i] * s
            turned.append(new)
        return turned

    def attention(self, q, keys, values):
        """Attention of one query's heads over the keys and values so far."""
        out = []
        shared = len(q) // len(keys[0])
        for i, head in enumerate(q):
            s = [dot(head, k[i // shared]) / math.sqrt(len(head)) for k in keys]
            top = max(s)
            p = [math.exp(v - top) for v in s]
            total = sum(p)
            out += [sum(w * v[i // shared][c] for w, v in zip(p, values)) / total
                    for c in range(len(head))]
        return out

    def logits(self, ids):
        x = [list(self.tensor["model.embed_tokens.weight"][i]) for i in ids]
        for n in range(self.config["num_hidden_layers"]):
            p = f"model.layers.{n}."
            keys, values = [], []
            for t, row in enumerate(x):
                h = self.norm(row, p + "input_layernorm.weight")
                keys.append(self.heads(self.linear(h, p + "self_attn.k_proj.weight"), t))
                values.append(self.heads(self.linear(h, p + "self_attn.v_proj.weight")))
                q = self.heads(self.linear(h, p + "self_attn.q_proj.weight"), t)
                o = self.attention(q, keys, values)
                row = [a + b for a, b in zip(row, self.linear(o, p + "self_attn.o_proj.weight"))]
                h = self.norm(row, p + "post_attention_layernorm.weight")
                gate = self.linear(h, p + "mlp.gate_proj.weight")
                up = self.linear(h, p + "mlp.up_proj.weight")
                m = [g / (1 + math.exp(-g)) * u for g, u in zip(gate, up)]
                x[t] = [a + b for a, b in zip(row, self.linear(m, p + "mlp.down_proj.weight"))]
        return [self.linear(self.norm(row, "model.norm.weight"), "lm_head.weight") for row in x]

    def log_likelihood(self, ids, first):
        """Returns the log-likelihood of ids[first:], given the ids before them."""
        total = 0
        for row, target in zip(self.logits(ids[:-1])[first - 1:], ids[first:]):
            top = max(row)
            total += row[target] - top - math.log(sum(math.exp(v - top) for v in row))
        return total
