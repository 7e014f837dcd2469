#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The cache of another engine that an artifact is calibrated for (kv.target), simulated and in transformers.

    engine_cache.py WKVQ ARTIFACT TEXT

Needs torch, transformers and compressed-tensors; exits with 77 without them. Exports the artifact, and compares the
mean loss of `wkvq eval` with that of transformers, both in F32, over WINDOWS (8) windows of CTX (256) tokens:

- fp8: the compressed-tensors export, loaded with its k_scale and v_scale. transformers 5.24 does not use them (5.19
  does), so the cache here is one whose keys and values compressed-tensors rounds as the file's kv_cache_scheme says.
  The same export with --kv drop is the measure: the losses with and without that cache must differ by more than the
  simulation and transformers do.

- transformers-quanto4: the dense export, with QuantizedCache: a prompt of 128 tokens, then token by token. Needs
  optimum-quanto, too.

Sums have another order there, so a value at a tie may round to its other neighbour."""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

try:
    import compressed_tensors
    import torch
    import transformers
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
except ImportError as missing:
    print(f"engine_cache.py: {missing}", file=sys.stderr)
    sys.exit(77)

WINDOWS = int(os.environ.get("WINDOWS", "8"))
CTX = int(os.environ.get("CTX", "256"))


def run(*command):
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


def token_losses(logits, ids):
    rows = torch.log_softmax(logits.double(), -1)
    return -rows.gather(1, ids[1:, None])[:, 0]


def whole_window(model, ids):
    return token_losses(model(ids[None]).logits[0, :-1], ids)


def mean_loss(folder, text, losses_of):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor(tokenizer(pathlib.Path(text).read_text(), add_special_tokens=False)["input_ids"])
    with torch.no_grad():
        parts = [losses_of(model, ids[w * CTX:(w + 1) * CTX]) for w in range(WINDOWS)]
    return torch.cat(parts).mean().item()


def to_nearest(x, scale, how):
    return fake_quantize(x, scale, None, how)


def toward_zero(x, scale, _):
    """The next float8 (E4M3) that is not larger than x, as vLLM 0.32 computes on a CPU."""
    x = (x / scale).clamp(-448, 448)
    bits = x.to(torch.float8_e4m3fn).view(torch.uint8)
    is_larger = bits.view(torch.float8_e4m3fn).to(x.dtype).abs() > x.abs()
    return (bits - is_larger.to(torch.uint8)).view(torch.float8_e4m3fn).to(x.dtype) * scale


class ScaledCache(transformers.DynamicCache):
    """A cache that rounds keys and values with the scales that the model's attention has loaded."""
    def __init__(self, model, rounded):
        super().__init__()
        self.attention = [layer.self_attn for layer in model.model.layers]
        for attention in self.attention:
            attention.quantization_enabled = False  # with transformers 5.19, compressed-tensors rounds by itself
        self.how = QuantizationArgs(**model.config.quantization_config.to_dict()["kv_cache_scheme"])
        self.rounded = rounded

    def update(self, keys, values, layer, *rest, **options):
        attention = self.attention[layer]
        keys = self.rounded(keys, attention.k_scale, self.how)
        values = self.rounded(values, attention.v_scale, self.how)
        return super().update(keys, values, layer, *rest, **options)


def by_scales(model, ids, rounded=to_nearest):
    return token_losses(model(ids[None], past_key_values=ScaledCache(model, rounded)).logits[0, :-1], ids)


def simulated(wkvq, artifact, text, *options):
    return json.loads(run(wkvq, "eval", artifact, "--data", text, "--ctx", CTX, "--windows", WINDOWS, "--json", "-q",
                          "--set", "run.compute=f32", *options))["nll"]


def fp8(wkvq, artifact, text, work):
    run(wkvq, "export", artifact, "--format", "compressed-tensors", "-q", "-o", work / "scaled")
    run(wkvq, "export", artifact, "--format", "compressed-tensors", "--kv", "drop", "-q", "-o", work / "plain")
    return mean_loss(work / "scaled", text, by_scales), mean_loss(work / "plain", text, whole_window)


PROMPT = 128  # as many tokens as the cache keeps in full precision, so that it quantizes where the simulation does


def by_quanto(model, ids):
    cache = transformers.QuantizedCache("quanto", model.config, nbits=4)
    rows = [model(ids[None, :PROMPT], past_key_values=cache).logits[0]]
    rows += [model(ids[None, t:t + 1], past_key_values=cache).logits[0] for t in range(PROMPT, len(ids) - 1)]
    return token_losses(torch.cat(rows), ids)


def quanto4(wkvq, artifact, text, work):
    run(wkvq, "export", artifact, "--format", "dense", "--dtype", "f32", "-q", "-o", work / "dense")
    return mean_loss(work / "dense", text, by_quanto), mean_loss(work / "dense", text, whole_window)


TARGETS = {"fp8": fp8, "transformers-quanto4": quanto4}


def main():
    wkvq, artifact, text = sys.argv[1:4]
    target = json.loads((pathlib.Path(artifact) / "config.json").read_text())["quantization_config"]["kv"]["target"]
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as work:
        served, plain = TARGETS[target](wkvq, artifact, text, pathlib.Path(work))
    own = simulated(wkvq, artifact, text)
    unquantized = simulated(wkvq, artifact, text, "--kv-bits", 16)
    good = abs(own - served) <= 0.2 * abs(own - unquantized) and abs(plain - unquantized) <= 1e-5
    print(f"{target}: simulated {own:.6f}, transformers {served:.6f} nats; without it {unquantized:.6f}, {plain:.6f}; "
          f"transformers {transformers.__version__}, compressed-tensors {compressed_tensors.__version__}: "
          f"{'agree' if good else 'DIFFERENT'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
