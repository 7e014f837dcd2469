#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What vLLM makes of exports of tiny random models, some of every family.

    export_vllm.py WKVQ [NAME...]

Needs vllm and what that needs; exits with 77 without it. Each model of CASES is rounded to nearest and exported as
compressed-tensors. vLLM computes it in float16 on its default device, transformers in float32 and in float16. Compared
are the log-probabilities of the whole vocabulary at every place of TOKENS random tokens. vLLM is as near as it should
be if its differences from float32 have at most twice the root mean square of those of transformers in float16. Prints
each result on standard error, then the table of docs/export.md, with the ratio of the two roots. Fails if a result is
not that of vLLM 0.32 on a CPU, which is `near` unless CASES says otherwise."""
import contextlib
import dataclasses
import os
import pathlib
import re
import subprocess
import sys
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "tests/golden"))
try:
    import torch
    import transformers
    import vllm
    import gen_models as golden
except ImportError as missing:
    print(f"export_vllm.py: {missing}")
    sys.exit(77)

TOKENS = 47
# vLLM's kernels on CPUs need rows and columns in multiples of 32, and its attention certain head sizes.
golden.BASE.update(hidden_size=128, intermediate_size=96, vocab_size=96)
THETA = {"rope_parameters": golden.theta(10000.0)}


def family(name, **kw):
    kind, config = (getattr(golden, name + part) for part in ("ForCausalLM", "Config"))
    return kind, config(**{**golden.BASE, **THETA, "pad_token_id": None, **kw})


def llama(**kw):
    return golden.llama(**{**THETA, **kw})


def gemma3():
    return golden.gemma3(num_hidden_layers=3, head_dim=32, sliding_window=9,
                         layer_types=["sliding_attention", "full_attention", "sliding_attention"])


def phi4_mini():
    return golden.phi3(tie_word_embeddings=True, rope_parameters=golden.longrope(12, partial_rotary_factor=0.75))


@dataclasses.dataclass
class Case:
    model: tuple            # class and configuration
    settings: tuple = ()    # of the rounding
    style: str = "new"      # of config.json
    options: dict = dataclasses.field(default_factory=dict)
    expected: str = "near"


CASES = {
    "Llama": Case(llama()),
    "without GQA, old config.json": Case(llama(num_key_value_heads=4), style="old"),
    "tied": Case(llama(tie_word_embeddings=True)),
    "biases": Case(llama(attention_bias=True, mlp_bias=True)),
    "llama3 rope": Case(llama(rope_parameters=golden.LLAMA3)),
    "the same, old config.json": Case(llama(rope_parameters=golden.LLAMA3), style="old"),
    "linear rope": Case(llama(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0})),
    "yarn": Case(llama(rope_parameters=golden.yarn())),
    "dynamic rope": Case(llama(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 100.0})),
    "3 heads, 96 and 160 columns": Case(llama(hidden_size=96, num_attention_heads=3, num_key_value_heads=1,
                                              intermediate_size=160)),
    "heads of 48": Case(llama(head_dim=48), ["weights.group_size=0"]),
    "whole rows": Case(llama(), ["weights.group_size=0"]),
    "2 bits": Case(llama(), ["weights.bits=2"]),
    "16 bits for some projections": Case(llama(), ["weights.mixed=1.o_proj=16, down_proj=16"]),
    "packed head": Case(llama(), ["head.bits=4", "head.group_size=32"]),
    "Mistral with a window": Case(family("Mistral", sliding_window=20)),
    "Qwen2": Case(family("Qwen2", tie_word_embeddings=True)),
    "Qwen3": Case(family("Qwen3")),
    "SmolLM3": Case(family("SmolLM3", num_hidden_layers=5)),
    "Granite": Case(family("Granite", **golden.GRANITE)),
    "Phi-3": Case(golden.phi3(num_key_value_heads=4, sliding_window=20, **THETA)),
    "Phi-4-mini": Case(phi4_mini(), style="old"),
    "OLMo 2": Case(family("Olmo2")),
    "Gemma 3 in bfloat16, `weights.scale_bits: 7`": Case(gemma3(), ["weights.scale_bits=7"],
                                                         options={"dtype": "bfloat16"}),
    "Gemma 3 in float16": Case(gemma3(), expected="refused: does not support float16"),
    "8 bits": Case(llama(), ["weights.bits=8"], expected="refused: Quant type (uint8) not supported"),
    "8 bits for o_proj": Case(llama(), ["weights.mixed=o_proj=8"], expected="refused: Quant type (uint8) not supported"),
    "80 columns": Case(llama(intermediate_size=80), ["weights.group_size=0"],
                       expected="refused: Input size (80) not supported"),
    "heads of 16": Case(llama(head_dim=16), expected="refused: Unsupported CPU attention configuration"),
    "Phi-4-mini with a `--max-model-len` beyond its own": Case(phi4_mini(), style="old", options={"max_model_len": 64},
                                                              expected="other"),
}


def export(wkvq, model, settings, work):
    sets = [word for s in ["weights.group_size=32", *settings] for word in ("--set", s)]
    for command in (["convert", model, "-q", *sets, "-o", work / "artifact"],
                    ["export", work / "artifact", "-q", "--format", "compressed-tensors", "-o", work / "packed"]):
        done = subprocess.run([wkvq, *map(str, command)], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"export_vllm.py: {done.stderr}")
    return work / "packed"


def by_transformers(folder, ids, dtype):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0, :-1].double(), -1)


def by_vllm(folder, ids, options):
    model = vllm.LLM(str(folder), skip_tokenizer_init=True, enforce_eager=True, kv_cache_memory_bytes=1 << 26,
                     max_logprobs=-1, distributed_executor_backend="uni", **options)
    how = vllm.SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=-1, detokenize=False)
    places = model.generate([{"prompt_token_ids": ids}], how, use_tqdm=False)[0].prompt_logprobs[1:]
    return torch.tensor([[place[t].logprob for t in range(len(place))] for place in places], dtype=torch.float64)


def refusal(error):
    """The words in a message of vLLM that say what it lacks."""
    found = re.search(r"(?<=CPUWNA16LinearKernel cannot implement due to: ).*?not supported|does not support \w+|"
                      r"Unsupported CPU attention configuration", str(error))
    return "refused: " + (found[0] if found else str(error).strip().splitlines()[0])


def compared(folder, ids, options):
    """What became of the export, and how far vLLM is from float32, as a multiple of how far transformers is."""
    # First transformers: vLLM replaces classes of it for models that it computes by them.
    want, half = (by_transformers(folder, ids, dtype) for dtype in (torch.float32, getattr(torch, options["dtype"])))
    try:
        have = by_vllm(folder, ids, options)
    except Exception as error:
        return refusal(error), None
    ratio = ((have - want).pow(2).sum() / (half - want).pow(2).sum()).sqrt().item()
    return "near" if ratio <= 2 else "other", ratio


def result(wkvq, case, seed):
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        with contextlib.redirect_stdout(sys.stderr):
            golden.generate(work, "model", (case.model, case.style, "float16", TOKENS, None), seed)
        ids = torch.randint(0, 96, (TOKENS,), generator=torch.Generator().manual_seed(seed)).tolist()
        options = {"dtype": "float16", "max_model_len": TOKENS + 1, **case.options}
        return compared(export(wkvq, work / "model", case.settings, work), ids, options)


def table(results):
    """Markdown, a row for every kind of result."""
    rows = {}
    for name, (kind, ratio) in results.items():
        rows.setdefault(kind, []).append((name, ratio))
    said = {"near": "as near as transformers", "other": "other answers, without an error"}
    lines = [f"| vLLM {vllm.__version__} | exports | ratio of differences |", "| --- | --- | --- |"]
    for kind, members in rows.items():
        ratios = [ratio for _, ratio in members if ratio is not None]
        span = f"{min(ratios):.2g} to {max(ratios):.2g}" if len(ratios) > 1 else "".join(f"{r:.2g}" for r in ratios)
        lines.append(f"| {said.get(kind, kind)} | {'; '.join(name for name, _ in members)} | {span} |")
    return "\n".join(lines)


def main():
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    results = {}
    unknown = [name for name in sys.argv[2:] if name not in CASES]
    if unknown:
        sys.exit(f"export_vllm.py: no case {', '.join(unknown)}, want some of: {'; '.join(CASES)}")
    for seed, (name, case) in enumerate(CASES.items()):
        if not sys.argv[2:] or name in sys.argv[2:]:
            results[name] = result(sys.argv[1], case, seed)
            print(f"{name}: {results[name]}", file=sys.stderr, flush=True)
    print(table(results))
    wrong = [name for name, (kind, _) in results.items() if kind != CASES[name].expected]
    for name in wrong:
        print(f"export_vllm.py: {name}: {results[name][0]}, want {CASES[name].expected}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
