#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What MLX makes of an AWQ export.

    export_mlx.py WKVQ MODEL_DIR

Needs mlx (mlx-cpu), mlx-lm, torch and transformers; exits with 77 without them. The model is rounded
to nearest in groups of 64, with scales of 7 bits, and exported as awq and as dense. MLX stores
-z h in float16 in place of z, which is exact with such scales. On 16 tokens, the log-probabilities of
MLX, which reads the codes and here computes in F32, are compared with those of transformers on the
values in F32. The bound covers two orders of summation."""
import pathlib
import subprocess
import sys
import tempfile

try:
    import mlx.core as mx
    import mlx.nn
    import mlx_lm.utils
    import numpy
    import torch
    import transformers
except ImportError as missing:
    print(f"export_mlx.py: {missing}")
    sys.exit(77)

TOKENS, BOUND = 16, 1e-3


def run(*command):
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)


def by_torch(folder, ids):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return torch.log_softmax(model(ids).logits[0].float(), -1).numpy()


def by_mlx(folder, ids):
    model, _ = mlx_lm.utils.load_model(pathlib.Path(folder))
    model.set_dtype(mx.float32)
    packed = sum(isinstance(m, mlx.nn.QuantizedLinear) for _, m in model.named_modules())
    logits = model(mx.array(ids.numpy()))[0].astype(mx.float32)
    return numpy.array(logits - mx.logsumexp(logits, -1, keepdims=True)), packed


def main():
    wkvq, source = sys.argv[1], sys.argv[2]
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as name:
        work = pathlib.Path(name)
        run(wkvq, "convert", source, "-q", "--set", "weights.group_size=64", "--set",
            "weights.scale_bits=7", "-o", work / "artifact")
        run(wkvq, "export", work / "artifact", "-q", "--format", "awq", "-o", work / "awq")
        run(wkvq, "export", work / "artifact", "-q", "--format", "dense", "--dtype", "f32", "-o", work / "dense")
        config = transformers.AutoConfig.from_pretrained(work / "dense")
        ids = torch.randint(0, config.vocab_size, (1, TOKENS), generator=torch.Generator().manual_seed(0))
        want = by_torch(work / "dense", ids)
        have, packed = by_mlx(work / "awq", ids)
    difference = abs(have - want).max()
    good = difference <= BOUND and packed == 7 * config.num_hidden_layers
    print(f"{source}: {packed} packed projections; largest difference of log-probabilities {difference:.2g}: "
          f"{'as near' if good else 'DIFFERENT'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
