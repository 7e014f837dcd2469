# SPDX-License-Identifier: MIT
"""A tiny random LLaMA with a byte-level tokenizer, and text for it, made with the standard
library, for the tests of the command line. Same arguments, same bytes."""
import functools
import json
import pathlib
import random
import struct

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 258,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


def tensors(config):
    """Yields (name, shape) of every tensor in storage order."""
    D, F, V = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    d = config["head_dim"]
    q, kv = config["num_attention_heads"] * d, config["num_key_value_heads"] * d
    behind, around = config["model_type"] == "olmo2", config["model_type"] == "gemma3_text"
    mlp = [("gate_proj", F), ("up_proj", F), ("down_proj", D)] if config.get("mlp_bias") else []
    fused = config["model_type"] == "phi3"
    experts = config.get("num_experts", config.get("num_local_experts", 0))
    router, parts = (("mlp.gate", ("gate_proj", "up_proj", "down_proj")) if config["model_type"] == "qwen3_moe" else
                     ("block_sparse_moe.gate", ("w1", "w3", "w2")))
    F = config.get("moe_intermediate_size", F)
    yield "model.embed_tokens.weight", (V, D)
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}."
        if behind:
            yield p + "post_feedforward_layernorm.weight", (D,)
            yield p + "self_attn.q_norm.weight", (q,)
            yield p + "self_attn.k_norm.weight", (kv,)
        else:
            yield p + "input_layernorm.weight", (D,)
        if around:
            yield p + "pre_feedforward_layernorm.weight", (D,)
            yield p + "post_feedforward_layernorm.weight", (D,)
        if around or config["model_type"] == "qwen3_moe":
            yield p + "self_attn.q_norm.weight", (d,)
            yield p + "self_attn.k_norm.weight", (d,)
        if fused:
            yield p + "self_attn.qkv_proj.weight", (q + 2 * kv, D)
        else:
            yield p + "self_attn.q_proj.weight", (q, D)
            yield p + "self_attn.k_proj.weight", (kv, D)
            yield p + "self_attn.v_proj.weight", (kv, D)
        yield p + "self_attn.o_proj.weight", (D, q)
        yield p + "post_attention_layernorm.weight", (D,)
        if experts:
            yield p + router + ".weight", (experts, D)
            for e in range(experts):
                for part, shape in zip(parts, ((F, D), (F, D), (D, F))):
                    yield p + f"{router.split('.')[0]}.experts.{e}.{part}.weight", shape
        elif fused:
            yield p + "mlp.gate_up_proj.weight", (2 * F, D)
        else:
            yield p + "mlp.gate_proj.weight", (F, D)
            yield p + "mlp.up_proj.weight", (F, D)
        if not experts:
            yield p + "mlp.down_proj.weight", (D, F)
        for name, rows in mlp:
            yield p + f"mlp.{name}.bias", (rows,)
    yield "model.norm.weight", (D,)
    yield "lm_head.weight", (V, D)


def values(rng, name, count):
    if "norm" in name:
        return [1 + 0.1 * rng.gauss(0, 1) for _ in range(count)]
    size = 1 if name.endswith(("mlp.gate.weight", "moe.gate.weight")) else 0.15  # routers choose clearly
    return [size * rng.gauss(0, 1) for _ in range(count)]


def write_safetensors(path, named):
    """named: list of (name, dtype, shape, bytes)."""
    header, offset = {}, 0
    for name, dtype, shape, data in named:
        header[name] = {"dtype": dtype, "shape": list(shape),
                        "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(n[3] for n in named))


def model_tensors(config, seed):
    return list(drawn(tuple(tensors(config)), seed))


@functools.cache
def drawn(shapes, seed):
    """Kept, because tests make the same model many times, and drawing takes most of the time."""
    rng = random.Random(seed)
    named = []
    for name, shape in shapes:
        count = 1
        for n in shape:
            count *= n
        data = struct.pack(f"<{count}f", *values(rng, name, count))
        named.append((name, "F32", shape, data))
    return named


def byte_characters():
    """GPT-2's visible character for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    chars, extra = {}, 0
    for b in range(256):
        if b in plain:
            chars[b] = chr(b)
        else:
            chars[b] = chr(256 + extra)
            extra += 1
    return chars


def tokenizer():
    def special(i, text):
        return {"id": i, "content": text, "single_word": False, "lstrip": False,
                "rstrip": False, "normalized": False, "special": True}

    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
             "use_regex": True}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [special(256, "<s>"), special(257, "</s>")],
        "normalizer": None, "pre_tokenizer": level, "post_processor": None, "decoder": level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {c: b for b, c in byte_characters().items()}, "merges": []},
    }


def make_model(path, seed=1, **changes):
    path = pathlib.Path(path)
    path.mkdir(parents=True)
    config = {**CONFIG, **changes}
    (path / "config.json").write_text(json.dumps(config, indent=1))
    (path / "tokenizer.json").write_text(json.dumps(tokenizer(), ensure_ascii=False))
    write_safetensors(path / "model.safetensors", model_tensors(config, seed))


def make_text(path, words=2000, seed=7):
    rng = random.Random(seed)
    list_of = "the a small model reads text and learns to write one word after another".split()
    lines, line = [], []
    for _ in range(words):
        line.append(rng.choice(list_of))
        if rng.random() < 0.1:
            lines.append(" ".join(line) + ".\n")
            line = []
    pathlib.Path(path).write_text("".join(lines))
