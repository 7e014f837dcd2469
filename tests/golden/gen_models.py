#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Tiny random models of every supported architecture, and the logits Hugging Face transformers computes
for them in F32: tests/golden/models/NAME/{config.json, *.safetensors, golden.safetensors}.

usage: gen_models.py OUT_DIR [NAME...]    (needs torch, transformers, safetensors; run once, results are committed)

golden.safetensors holds ids I32 [T] and logits F32 [T, V]. Weights are larger than a fresh model's, so that
attention is far from uniform and every term of the forward pass affects the logits."""
import json
import pathlib
import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import (Gemma3ForCausalLM, Gemma3TextConfig, GraniteConfig, GraniteForCausalLM, LlamaConfig,
                          LlamaForCausalLM, MistralConfig, MistralForCausalLM, MixtralConfig, MixtralForCausalLM,
                          Olmo2Config, Olmo2ForCausalLM, Phi3Config, Phi3ForCausalLM, Qwen2Config, Qwen2ForCausalLM,
                          Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM, SmolLM3Config,
                          SmolLM3ForCausalLM)

BASE = dict(hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, vocab_size=72, max_position_embeddings=128, rms_norm_eps=1e-5,
            tie_word_embeddings=False, bos_token_id=1, eos_token_id=2)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=16, rope_theta=500.0)
GRANITE = dict(embedding_multiplier=3.0, attention_multiplier=0.15, residual_multiplier=0.4, logits_scaling=1.7,
               tie_word_embeddings=True)


def llama(**kw):
    return LlamaForCausalLM, LlamaConfig(**{**BASE, **kw})


def gemma3(**kw):
    ropes = {"full_attention": dict(rope_type="linear", factor=4.0, rope_theta=1000.0),
             "sliding_attention": theta(100.0)}
    return Gemma3ForCausalLM, Gemma3TextConfig(**{**BASE, "head_dim": 16, "query_pre_attn_scalar": 24,
                                                  "tie_word_embeddings": True, "pad_token_id": None,
                                                  "rope_parameters": ropes, **kw})


def theta(value, **kw):
    return dict(rope_type="default", rope_theta=value, **kw)


def yarn(**kw):
    return dict(rope_type="yarn", rope_theta=100.0, factor=4.0, original_max_position_embeddings=32, **kw)


def longrope(pairs, **kw):
    """LongRoPE for texts of up to 48 tokens. Factors differ by pair, and the long ones from the short ones."""
    return dict(rope_type="longrope", rope_theta=100.0, original_max_position_embeddings=48,
                short_factor=[1 + 0.3 * i for i in range(pairs)], long_factor=[2 + i * i for i in range(pairs)], **kw)


def phi3(**kw):
    return Phi3ForCausalLM, Phi3Config(**{**BASE, "pad_token_id": None, "original_max_position_embeddings": 48, **kw})


def qwen3_moe(**kw):
    return Qwen3MoeForCausalLM, Qwen3MoeConfig(**{**BASE, "num_hidden_layers": 2, "head_dim": 16, "num_experts": 6,
                                                  "num_experts_per_tok": 3, "moe_intermediate_size": 16,
                                                  "rope_parameters": theta(1000000.0), **kw})


# name: (class, config), generation of config.json, dtype, tokens, save_pretrained's shard size
MODELS = {
    "llama1_mha": (llama(num_key_value_heads=4, rope_parameters=theta(10000.0), rms_norm_eps=1e-6),
                   "old", "float32", 24, None),
    "llama2_gqa": (llama(num_hidden_layers=3, rope_parameters=theta(10000.0)), "old", "float32", 24, "20KB"),
    "llama3_rope": (llama(rope_parameters=LLAMA3, head_dim=16, eos_token_id=[2, 3, 5]), "new", "float32", 96,
                    None),
    "llama3_rope_old": (llama(rope_parameters={**LLAMA3, "factor": 4.0}), "old", "float32", 64, None),
    "linear_rope": (llama(rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=1000.0)), "old",
                    "float32", 48, None),
    "mistral": ((MistralForCausalLM, MistralConfig(**{**BASE, "sliding_window": 64, "head_dim": 12,
                                                      "rope_parameters": theta(1000000.0)})),
                "new", "float32", 24, None),
    "qwen2": ((Qwen2ForCausalLM, Qwen2Config(**{**BASE, "tie_word_embeddings": True,
                                                "rope_parameters": theta(1000000.0)})),
              "old", "float32", 24, None),
    "qwen3": ((Qwen3ForCausalLM, Qwen3Config(**{**BASE, "head_dim": 16, "num_attention_heads": 6,
                                                "num_key_value_heads": 2, "hidden_size": 40,
                                                "rope_parameters": theta(1000000.0)})),
              "new", "float32", 24, None),
    "llama_bias": (llama(attention_bias=True, rope_parameters=theta(10000.0)), "new", "float32", 24, None),
    "llama_tied_bf16": (llama(tie_word_embeddings=True, num_attention_heads=8, num_key_value_heads=1,
                              head_dim=8, rope_parameters=theta(10000.0)), "new", "bfloat16", 24, None),
    "llama_f16": (llama(num_attention_heads=3, num_key_value_heads=1, hidden_size=48, intermediate_size=40,
                        rope_parameters=theta(100000.0)), "old", "float16", 24, None),
    "llama_mlp_bias": (llama(mlp_bias=True, attention_bias=True, rope_parameters=theta(10000.0)), "new", "float32",
                       24, None),
    "yarn": (llama(rope_parameters=yarn(), head_dim=16), "new", "float32", 96, None),
    "yarn_attention": (llama(rope_parameters=yarn(attention_factor=1.3, beta_fast=4.0, beta_slow=0.5,
                                                  truncate=False), head_dim=16), "old", "float32", 96, None),
    "yarn_mscale": ((Qwen2ForCausalLM, Qwen2Config(**{**BASE, "rope_parameters": yarn(mscale=1.4,
                                                                                     mscale_all_dim=0.6)})),
                    "old", "float32", 96, None),
    "dynamic_rope": (llama(rope_parameters=dict(rope_type="dynamic", factor=2.0, rope_theta=100.0)), "old",
                     "float32", 128, None),
    "tied_twice": (llama(rope_parameters=theta(10000.0)), "new", "float32", 24, None),
    "tied_head_only": (llama(tie_word_embeddings=True, rope_parameters=theta(10000.0)), "new", "float16", 24, None),
    "llama_base": (llama(tie_word_embeddings=True, rope_parameters=theta(10000.0)), "new", "float32", 24, None),
    "granite": ((GraniteForCausalLM, GraniteConfig(**{**BASE, **GRANITE, "rope_parameters": theta(10000.0)})), "old",
                "float32", 24, None),
    "granite_bias": ((GraniteForCausalLM, GraniteConfig(**{**BASE, "attention_bias": True, "mlp_bias": True,
                                                           "embedding_multiplier": 2.5,
                                                           "rope_parameters": theta(10000.0)})), "new", "float32", 24, None),
    "mistral_window": ((MistralForCausalLM, MistralConfig(**{**BASE, "sliding_window": 20, "head_dim": 8,
                                                             "rope_parameters": theta(10000.0)})),
                       "old", "float32", 96, None),
    "qwen2_window": ((Qwen2ForCausalLM, Qwen2Config(**{**BASE, "num_hidden_layers": 3, "use_sliding_window": True,
                                                       "sliding_window": 7, "max_window_layers": 1,
                                                       "rope_parameters": theta(10000.0)})),
                     "old", "float32", 48, None),
    "qwen3_window": ((Qwen3ForCausalLM, Qwen3Config(**{**BASE, "num_hidden_layers": 3, "head_dim": 16,
                                                       "use_sliding_window": True, "sliding_window": 1,
                                                       "layer_types": ["sliding_attention", "full_attention",
                                                                       "sliding_attention"],
                                                       "rope_parameters": theta(10000.0)})),
                     "new", "float32", 24, None),
    "smollm3_window": ((SmolLM3ForCausalLM, SmolLM3Config(**{**BASE, "num_hidden_layers": 3, "attention_bias": True,
                                                             "pad_token_id": None, "no_rope_layers": [0, 1, 0],
                                                             "use_sliding_window": True, "sliding_window": 9,
                                                             "layer_types": None,
                                                             "rope_parameters": theta(10000.0)})),
                       "old", "float32", 48, None),
    "smollm3": ((SmolLM3ForCausalLM, SmolLM3Config(**{**BASE, "num_hidden_layers": 5, "tie_word_embeddings": True,
                                                      "pad_token_id": None,
                                                      "rope_parameters": theta(10000.0)})),
                "new", "float32", 24, None),
    "phi3": (phi3(num_key_value_heads=4, sliding_window=20, rope_parameters=theta(10000.0)), "old", "float32", 40, None),
    "phi3_longrope": (phi3(num_hidden_layers=3, sliding_window=128, rope_parameters=longrope(4)), "new", "float32",
                      48, "20KB"),
    "phi4_mini": (phi3(hidden_size=64, tie_word_embeddings=True,
                       rope_parameters=longrope(6, partial_rotary_factor=0.75)), "old", "float16", 48, None),
    "olmo2": ((Olmo2ForCausalLM, Olmo2Config(**{**BASE, "pad_token_id": None, "rope_parameters": theta(500000.0)})),
              "new", "float32", 24, None),
    "olmo2_bias": ((Olmo2ForCausalLM, Olmo2Config(**{**BASE, "pad_token_id": None, "num_key_value_heads": 4,
                                                     "attention_bias": True, "rope_parameters": theta(10000.0)})),
                   "old", "bfloat16", 24, None),
    "gemma3": (gemma3(num_hidden_layers=3, layer_types=["sliding_attention", "full_attention", "sliding_attention"],
                      sliding_window=9), "new", "float32", 48, None),
    "gemma3_old": (gemma3(num_hidden_layers=5, sliding_window=7, query_pre_attn_scalar=16, sliding_window_pattern=2),
                   "old", "bfloat16", 48, None),
    "qwen3_moe": (qwen3_moe(norm_topk_prob=True), "new", "float32", 24, None),
    "qwen3_moe_plain": (qwen3_moe(norm_topk_prob=False, num_experts_per_tok=2, attention_bias=True,
                                  use_sliding_window=True, sliding_window=9), "old", "bfloat16", 24, "20KB"),
    "mixtral": ((MixtralForCausalLM, MixtralConfig(**{**BASE, "intermediate_size": 24, "num_local_experts": 4,
                                                      "num_experts_per_tok": 2, "head_dim": None,
                                                      "rope_parameters": theta(10000.0)})),
                "new", "float32", 24, None),
}


def set_config(path, **kw):
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **kw}, indent=2, sort_keys=True) + "\n")


def head_only(path, model):
    """The head under its name, and no embedding: as safetensors' save_model may leave it."""
    file = path / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, file, metadata={"format": "pt"})


# Changes to a saved checkpoint that make its files unusual.
ODD = {
    "tied_twice": lambda path, model: set_config(path, tie_word_embeddings=True),
    "tied_head_only": head_only,
    "llama_base": lambda path, model: model.model.save_pretrained(path),
}


def randomize(model, seed):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=g)
            if "norm" in name:
                p.copy_(0.3 * noise + (-0.6 if "gemma" in model.config.model_type else 1))
            elif name.endswith("bias"):
                p.copy_(0.5 * noise)
            elif "embed" in name:
                p.copy_(noise)
            else:
                p.copy_(1.3 * noise / p.shape[-1] ** 0.5)


def old_style(config):
    """config.json as transformers 4 wrote it."""
    rope = config.pop("rope_parameters")
    if "sliding_attention" in rope:  # Gemma 3
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        config["sliding_window_pattern"] = config.pop("layer_types").index("full_attention") + 1
        rope = rope["full_attention"]
    config["rope_theta"] = rope.pop("rope_theta")
    if (share := rope.pop("partial_rotary_factor", 1)) != 1:
        config["partial_rotary_factor"] = share
    if "original_max_position_embeddings" in config:
        rope.pop("original_max_position_embeddings", None)
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    older = config["model_type"] != "gemma3_text"  # files of 2023 and 2024 call it type
    if older and rope["rope_type"] in ("linear", "dynamic", "yarn", "longrope"):
        rope["type"] = rope.pop("rope_type")
    config["torch_dtype"] = config.pop("dtype")
    if "num_local_experts" in config:
        config["num_experts"] = config.pop("num_local_experts")
    return config


def generate(out, name, spec, seed):
    (cls, config), style, dtype, tokens, shard = spec
    path = out / name
    config._attn_implementation = "eager"
    model = cls(config).eval()
    randomize(model, seed)
    model = model.to(getattr(torch, dtype))
    model.save_pretrained(path, **({"max_shard_size": shard} if shard else {}))
    ODD.get(name, lambda path, model: None)(path, model)
    (path / "generation_config.json").unlink(missing_ok=True)
    file = path / "config.json"
    written = json.loads(file.read_text())
    assert "rope_parameters" in written and "dtype" in written, written
    if style == "old":
        file.write_text(json.dumps(old_style(written), indent=2, sort_keys=True) + "\n")
    loaded = cls.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    if hasattr(loaded.model.embed_tokens, "embed_scale"):  # as a model of the checkpoint's type has it
        loaded.model.embed_tokens.embed_scale = loaded.model.embed_tokens.embed_scale.to(getattr(torch, dtype)).float()
    ids = torch.randint(0, config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(seed + 1))
    with torch.no_grad():
        logits = loaded(ids).logits[0]
    save_file({"ids": ids[0].to(torch.int32), "logits": logits.contiguous()}, path / "golden.safetensors",
              metadata={"format": "pt"})
    print(f"{name}: logits {logits.min():.2f} to {logits.max():.2f}, "
          f"{sum(f.stat().st_size for f in path.iterdir())} bytes in {sorted(f.name for f in path.iterdir())}")


def main():
    out = pathlib.Path(sys.argv[1])
    for i, (name, spec) in enumerate(MODELS.items()):
        if not sys.argv[2:] or name in sys.argv[2:]:
            generate(out, name, spec, 100 * i)


if __name__ == "__main__":
    main()
