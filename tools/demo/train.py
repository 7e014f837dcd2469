#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Train the demo model: a small LLaMA with its own byte-level BPE, on the text of corpus.py.

    python3 -m venv v && v/bin/pip install torch transformers tokenizers
    v/bin/python tools/demo/train.py data/demo [--steps 3000]

Writes config.json, model.safetensors (F16), tokenizer.json, tokenizer_config.json, calibration.txt and heldout.txt (from other
seeds than the training text), and prints perplexity on held-out text and that of a unigram model. Takes about an hour on two cores. The
result depends on the versions of the packages, so the figures of the tests belong to the committed model.
"""
import argparse
import collections
import json
import math
import pathlib

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

import corpus

TRAIN, CALIBRATION, HELD_OUT = 1, 2, 3  # seeds of the three texts
EOS = "<|end|>"
LENGTH, BATCH = 512, 8


def text_of(seed, size):
    out, n = [], 0
    for doc in corpus.stream(seed):
        if n + len(doc) > size:
            return "".join(out)
        out.append(doc)
        n += len(doc)


def train_tokenizer():
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                 pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator([text_of(TRAIN, 2_000_000)], trainers.BpeTrainer(
        vocab_size=1024, special_tokens=[EOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tok


def batches(tok):
    """Yields [BATCH, LENGTH] token tensors without end; documents end with EOS."""
    buffer, end = [], tok.token_to_id(EOS)
    for doc in corpus.stream(TRAIN):
        buffer += tok.encode(doc).ids + [end]
        if len(buffer) >= BATCH * LENGTH:
            yield torch.tensor(buffer[:BATCH * LENGTH]).view(BATCH, LENGTH)
            buffer = buffer[BATCH * LENGTH:]


def perplexity(model, ids):
    windows = torch.tensor(ids[:len(ids) // LENGTH * LENGTH]).view(-1, LENGTH)[:32]
    with torch.no_grad():
        return math.exp(sum(model(w[None], labels=w[None]).loss.item() for w in windows) / len(windows))


def unigram(train_ids, ids):
    count = collections.Counter(train_ids)
    total = len(train_ids) + 1024
    return math.exp(-sum(math.log((count[i] + 1) / total) for i in ids) / len(ids))


def spread(model, weights, cache, seed=4):
    """Give the channels unequal sizes, without changing the function: what one projection scales up, the next scales down.

    Large models have outlier channels, and this one is too small to grow them; without them rounding to 4 bits costs it
    nothing, and there would be nothing to show. Factors are log-normal: `weights` for the inputs of projections, `cache`
    for keys (equal on both halves of a rotary pair) and values."""
    rng, c = torch.Generator().manual_seed(seed), model.config
    factor = lambda n, sigma: torch.exp(sigma * torch.randn(n, generator=rng))
    repeat = c.num_attention_heads // c.num_key_value_heads
    for layer in model.model.layers:
        attn, mlp = layer.self_attn, layer.mlp
        a, b, u = factor(c.hidden_size, weights), factor(c.hidden_size, weights), factor(c.intermediate_size, weights)
        v, k = factor(c.head_dim, cache), factor(c.head_dim // 2, cache).repeat(2)
        layer.input_layernorm.weight.data /= a
        layer.post_attention_layernorm.weight.data /= b
        for p in (attn.q_proj, attn.k_proj, attn.v_proj):
            p.weight.data *= a
        for p in (mlp.gate_proj, mlp.up_proj):
            p.weight.data *= b
        mlp.up_proj.weight.data /= u[:, None]
        mlp.down_proj.weight.data *= u
        attn.v_proj.weight.data *= v[:, None]
        attn.o_proj.weight.data /= v.repeat(repeat)
        attn.k_proj.weight.data *= k[:, None]
        attn.q_proj.weight.data /= k.repeat(repeat)[:, None]


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("out", type=pathlib.Path)
    ap.add_argument("--steps", type=int, default=3000)
    ap.add_argument("--threads", type=int, default=2)
    args = ap.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    tok = train_tokenizer()
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=1024, hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=3,
        num_key_value_heads=1, head_dim=64, max_position_embeddings=2048, rms_norm_eps=1e-5, rope_theta=10000.0,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.95), weight_decay=0.0)
    held = tok.encode(text_of(HELD_OUT, 300_000)).ids

    def save():
        model.half().save_pretrained(args.out)
        model.float()
        config = json.loads((args.out / "config.json").read_text())
        for key in ("transformers_version", "_name_or_path", "use_cache"):
            config.pop(key, None)
        (args.out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        (args.out / "generation_config.json").unlink(missing_ok=True)

    tok.save(str(args.out / "tokenizer.json"))
    (args.out / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": EOS, "eos_token": EOS, "model_max_length": 2048}, indent=2) + "\n")
    (args.out / "calibration.txt").write_text(text_of(CALIBRATION, 400_000))
    (args.out / "heldout.txt").write_text(text_of(HELD_OUT, 300_000))
    for step, batch in zip(range(args.steps), batches(tok)):
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * min(1, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * step / args.steps)) + 1e-5
        loss = model(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 99:
            print(f"step {step + 1}: loss {loss.item():.3f}, held-out perplexity {perplexity(model, held):.3f}", flush=True)
        if step % 500 == 499:
            save()
    spread(model, weights=0.8, cache=0.55)
    save()
    train_ids = tok.encode(text_of(TRAIN, 2_000_000)).ids
    print(f"held-out perplexity {perplexity(model, held):.3f}, unigram {unigram(train_ids, held):.1f}")


if __name__ == "__main__":
    main()
