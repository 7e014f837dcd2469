#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What transformers makes of an artifact and of its exports.

    export_transformers.py WKVQ MODEL_DIR[:GROUP_SIZE[:HEAD_BITS]] ...

Needs torch, transformers, compressed-tensors and what that needs; exits with 77 without them. For
each model, rounded to nearest in groups of GROUP_SIZE (128), with scales of 7 bits if HEAD_BITS quantizes its head:

1. transformers refuses the artifact itself, by AutoModelForCausalLM and by the model's class;
2. the logits of the compressed-tensors export equal those of the dense export exactly, in F32. HEAD_BITS is 2 to 4:
   a head that is not tied is then packed, too.

compressed-tensors 0.18 to 0.20 cannot load asymmetric zero points compressed. With these the weights
are dequantized while loading. That multiplies code and scale in float16, so the projections of the
dense export are then rounded once to float16 for the comparison."""
import pathlib
import subprocess
import sys
import tempfile

try:
    import compressed_tensors
    import torch
    import transformers
except ImportError as missing:
    print(f"export_transformers.py: {missing}")
    sys.exit(77)


def run(*command):
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)


def logits(folder, half=False, **options):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    for name, weight in model.named_parameters() if half else []:
        if name.endswith("_proj.weight"):
            weight.data = weight.data.half().float()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (2, 48), generator=generator)
    with torch.no_grad():
        return model(ids).logits


def is_refused(load):
    try:
        load()
    except ValueError as refusal:
        return "quant_method" in str(refusal)
    return False


def packed_zeros_load():
    version = tuple(int(part) for part in compressed_tensors.__version__.split(".")[:2])
    return not (0, 18) <= version <= (0, 20)


def check(wkvq, model, group, head, work):
    artifact = work / "artifact"
    sets = [f"weights.group_size={group}", f"head.group_size={group}"]
    sets += [f"head.bits={head}", "weights.scale_bits=7"] if head else []
    run(wkvq, "convert", model, "-q", "-o", artifact, *[word for s in sets for word in ("--set", s)])
    config = transformers.AutoConfig.from_pretrained(artifact)
    direct = getattr(transformers, config.architectures[0])
    for kind in (transformers.AutoModelForCausalLM, direct):
        if not is_refused(lambda: kind.from_pretrained(artifact)):
            print(f"{model}: {kind.__name__} did not refuse the artifact")
            return False
    run(wkvq, "export", artifact, "-q", "--format", "compressed-tensors", "-o", work / "packed")
    run(wkvq, "export", artifact, "-q", "--format", "dense", "--dtype", "f32", "-o", work / "dense")
    if packed_zeros_load():
        have, want = logits(work / "packed"), logits(work / "dense")
    else:
        loose = transformers.CompressedTensorsConfig(dequantize=True)
        have, want = logits(work / "packed", quantization_config=loose), logits(work / "dense", half=True)
    difference = (have - want).abs().max().item()
    print(f"{model}: artifact refused; largest difference of logits {difference} of {want.abs().max().item():.3f}")
    return difference == 0 and torch.isfinite(have).all().item()


def main():
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(2)
    good = True
    for argument in sys.argv[2:]:
        model, group, head = (argument.split(":") + ["", ""])[:3]
        with tempfile.TemporaryDirectory() as work:
            good &= check(sys.argv[1], pathlib.Path(model), group or "128", head, pathlib.Path(work))
    print(f"transformers {transformers.__version__}, compressed-tensors {compressed_tensors.__version__}: "
          f"{'all equal' if good else 'DIFFERENT'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
