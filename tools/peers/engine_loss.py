#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Perplexity of an exported directory in an engine.

    engine_loss.py transformers|vllm DIR TEXT [REFERENCE.json [SAME.json]]

Over the second half of each of WINDOWS windows of WINDOW tokens, as `gguf_check.py perplexity` counts, so that figures
of the same text are comparable. Prints JSON, with the nats of each scored token. With REFERENCE, the output of another
run, it also prints on standard error the ratio of perplexities, its standard error, and the differences of a token.
SAME is a run of another engine in the DTYPE of this one, against a REFERENCE in float32: the exit status is then 1 if
this run's differences from the reference have more than twice the root mean square of that run's.

transformers computes in DTYPE (float32), vLLM in DTYPE (float16) on its default device. CACHE is vLLM's
--kv-cache-dtype; for transformers it is fp8 or fp8-toward-zero, which round the cache of an export with kv.target: fp8
to nearest, as kv.target simulates, or toward zero, as vLLM 0.32 does on a CPU. Environment: WINDOWS (4), WINDOW (512), DTYPE,
CACHE, THREADS (1). Exits with 77 without the engine's packages."""
import json
import math
import os
import pathlib
import sys

WINDOWS = int(os.environ.get("WINDOWS", "4"))
WINDOW = int(os.environ.get("WINDOW", "512"))
CACHE = os.environ.get("CACHE", "auto")
THREADS = os.environ.get("THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", THREADS)
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")


def windows(tokenizer, text):
    ids = tokenizer(pathlib.Path(text).read_text(), add_special_tokens=False)["input_ids"]
    if len(ids) < WINDOWS * WINDOW:
        sys.exit(f"engine_loss.py: {text} has {len(ids)} tokens, want {WINDOWS * WINDOW}")
    return [ids[w * WINDOW:(w + 1) * WINDOW] for w in range(WINDOWS)]


def plain_losses(model, ids):
    import torch
    rows = torch.log_softmax(model(ids[None]).logits[0, :-1].double(), -1)
    return -rows.gather(1, ids[1:, None])[:, 0]


def window_losses():
    """How transformers computes the losses of a window. A rounded cache is that of engine_cache.py, and needs its packages."""
    if CACHE == "auto":
        return plain_losses
    if CACHE not in ("fp8", "fp8-toward-zero"):
        sys.exit(f"engine_loss.py: CACHE is {CACHE}, want auto, fp8 or fp8-toward-zero for transformers")
    import engine_cache
    rounded = engine_cache.to_nearest if CACHE == "fp8" else engine_cache.toward_zero
    return lambda model, ids: engine_cache.by_scales(model, ids, rounded=rounded)


def by_transformers(folder, text):
    import torch
    import transformers
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    losses_of, losses = window_losses(), []
    torch.set_num_threads(int(THREADS))
    dtype = getattr(torch, os.environ.get("DTYPE", "float32"))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    for ids in windows(transformers.AutoTokenizer.from_pretrained(folder), text):
        with torch.no_grad():
            losses += losses_of(model, torch.tensor(ids))[WINDOW // 2:].tolist()
    return losses


def by_vllm(folder, text):
    import vllm
    model = vllm.LLM(folder, dtype=os.environ.get("DTYPE", "float16"), kv_cache_dtype=CACHE,
                     max_model_len=WINDOW + 1, enforce_eager=True, kv_cache_memory_bytes=1 << 30)
    how = vllm.SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    losses = []
    for ids in windows(model.get_tokenizer(), text):
        answer = model.generate([{"prompt_token_ids": ids}], how, use_tqdm=False)[0]
        for at in range(WINDOW // 2 + 1, WINDOW):
            losses.append(-answer.prompt_logprobs[at][ids[at]].logprob)
    return losses


ENGINES = {"transformers": by_transformers, "vllm": by_vllm}


def root_mean_square(a, b):
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a))


def compare(have, reference):
    gaps = [a - b for a, b in zip(have, reference, strict=True)]
    mean = sum(gaps) / len(gaps)
    error = math.sqrt(sum((g - mean) ** 2 for g in gaps) / (len(gaps) - 1) / len(gaps))
    print(f"ratio {math.exp(mean):.5f} +- {math.exp(mean) * error:.5f}; differences of a token: root mean square "
          f"{root_mean_square(have, reference):.2g}, largest {max(map(abs, gaps)):.2g} nats", file=sys.stderr)


def losses_in(path):
    return json.loads(pathlib.Path(path).read_text())["losses"]


def main():
    if len(sys.argv) not in (4, 5, 6) or sys.argv[1] not in ENGINES:
        sys.exit(__doc__)
    try:
        losses = ENGINES[sys.argv[1]](sys.argv[2], sys.argv[3])
    except ImportError as missing:
        print(f"engine_loss.py: {missing}", file=sys.stderr)
        sys.exit(77)
    if not all(map(math.isfinite, losses)):
        sys.exit("engine_loss.py: a loss is not finite")
    print(json.dumps({"engine": sys.argv[1], "perplexity": math.exp(sum(losses) / len(losses)), "tokens": len(losses),
                      "losses": losses}))
    others = [losses_in(path) for path in sys.argv[4:]]
    if others:
        compare(losses, others[0])
    if len(others) == 2 and not root_mean_square(losses, others[0]) <= 2 * root_mean_square(others[1], others[0]):
        sys.exit("engine_loss.py: further from the reference than twice the other engine in the same type")


if __name__ == "__main__":
    main()
