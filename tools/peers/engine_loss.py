#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Perplexity of an exported directory in an engine.

    engine_loss.py transformers|vllm DIR TEXT [OTHER.json]

Over the second half of each of WINDOWS windows of WINDOW tokens, as `gguf_check.py perplexity` counts, so that figures
of the same text are comparable. Prints JSON, with the nats of each scored token. With OTHER, the output of another
run, it also prints on standard error the ratio of perplexities, its standard error, and the largest difference of a
token. transformers computes in DTYPE (float32), vLLM in DTYPE (float16) on its default device. Environment: WINDOWS (4),
WINDOW (512), DTYPE, THREADS (1). Exits with 77 without the engine's packages."""
import json
import math
import os
import pathlib
import sys

WINDOWS = int(os.environ.get("WINDOWS", "4"))
WINDOW = int(os.environ.get("WINDOW", "512"))
THREADS = os.environ.get("THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", THREADS)


def windows(tokenizer, text):
    ids = tokenizer(pathlib.Path(text).read_text(), add_special_tokens=False)["input_ids"]
    if len(ids) < WINDOWS * WINDOW:
        sys.exit(f"engine_loss.py: {text} has {len(ids)} tokens, want {WINDOWS * WINDOW}")
    return [ids[w * WINDOW:(w + 1) * WINDOW] for w in range(WINDOWS)]


def by_transformers(folder, text):
    import torch
    import transformers
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(int(THREADS))
    dtype = getattr(torch, os.environ.get("DTYPE", "float32"))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    losses = []
    for ids in windows(transformers.AutoTokenizer.from_pretrained(folder), text):
        ids = torch.tensor([ids])
        with torch.no_grad():
            rows = torch.log_softmax(model(ids).logits[0, WINDOW // 2:-1].double(), -1)
        losses += (-rows.gather(1, ids[0, WINDOW // 2 + 1:, None]))[:, 0].tolist()
    return losses


def by_vllm(folder, text):
    import vllm
    model = vllm.LLM(folder, dtype=os.environ.get("DTYPE", "float16"), max_model_len=WINDOW + 1, enforce_eager=True)
    how = vllm.SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    losses = []
    for ids in windows(model.get_tokenizer(), text):
        answer = model.generate([{"prompt_token_ids": ids}], how, use_tqdm=False)[0]
        for at in range(WINDOW // 2 + 1, WINDOW):
            losses.append(-answer.prompt_logprobs[at][ids[at]].logprob)
    return losses


ENGINES = {"transformers": by_transformers, "vllm": by_vllm}


def compare(have, other):
    gaps = [a - b for a, b in zip(have, other, strict=True)]
    mean = sum(gaps) / len(gaps)
    error = math.sqrt(sum((g - mean) ** 2 for g in gaps) / (len(gaps) - 1) / len(gaps))
    print(f"ratio {math.exp(mean):.5f} +- {math.exp(mean) * error:.5f}; largest difference of a token "
          f"{max(map(abs, gaps)):.2g} nats", file=sys.stderr)


def main():
    if len(sys.argv) not in (4, 5) or sys.argv[1] not in ENGINES:
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
    if len(sys.argv) == 5:
        compare(losses, json.loads(pathlib.Path(sys.argv[4]).read_text())["losses"])


if __name__ == "__main__":
    main()
