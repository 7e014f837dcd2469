#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Weights that compressed-tensors packed, in transformers and after --weights-from.

    import_transformers.py WKVQ MODEL_DIR[:GROUP_SIZE] ...

Needs torch, transformers, compressed-tensors and what that needs; exits with 77 without them. Each model is
rounded to nearest by the library itself, symmetric and asymmetric, and saved packed. The logits that transformers
computes from these files must equal those of the imported artifact's values exactly, in F32. Versions 0.18 to 0.20
cannot load asymmetric zero points that are packed; with these only symmetric weights are compared."""
import pathlib
import subprocess
import sys
import tempfile

try:
    import compressed_tensors
    import torch
    import transformers
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (QuantizationConfig, QuantizationStatus, apply_quantization_config,
                                                 preset_name_to_scheme)
    from compressed_tensors.quantization.utils import calculate_qparams
except ImportError as missing:
    print(f"import_transformers.py: {missing}")
    sys.exit(77)


def pack(source, out, preset, group):
    """Rounds the projections of a checkpoint to nearest and saves them packed."""
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float16)
    scheme = preset_name_to_scheme(preset, ["Linear"])
    scheme.weights.group_size = group
    apply_quantization_config(model, QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"]))
    for module in model.modules():
        if getattr(module, "quantization_scheme", None):
            w = module.weight.data.unflatten(1, (-1, group))
            scale, zero = calculate_qparams(w.amin(2), w.amax(2), module.quantization_scheme.weights)
            module.weight_scale.data.copy_(scale)
            if hasattr(module, "weight_zero_point"):
                module.weight_zero_point.data.copy_(zero)
            module.quantization_status = QuantizationStatus.FROZEN
    compressor = ModelCompressor.from_pretrained_model(model, quantization_format="pack-quantized")
    compressor.compress_model(model)
    model.save_pretrained(out)
    compressor.update_config(out)


def logits(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (2, 48), generator=generator)
    with torch.no_grad():
        return model(ids).logits


def check(wkvq, source, preset, group, work):
    packed, artifact, dense = work / f"{preset}-packed", work / f"{preset}-artifact", work / f"{preset}-dense"
    pack(source, packed, preset, group)
    for command in (["convert", packed, "--weights-from", packed, "-o", artifact],
                    ["export", artifact, "--format", "dense", "--dtype", "f32", "-o", dense]):
        subprocess.run([str(part) for part in (wkvq, *command, "-q")], check=True, stdout=subprocess.DEVNULL)
    have, want = logits(dense), logits(packed)
    difference = (have - want).abs().max().item()
    print(f"{source} {preset} in groups of {group}: largest difference of logits {difference} of "
          f"{want.abs().max().item():.3f}")
    return difference == 0 and torch.isfinite(want).all().item()


def main():
    version = tuple(int(part) for part in compressed_tensors.__version__.split(".")[:2])
    presets = ["W4A16"] if (0, 18) <= version <= (0, 20) else ["W4A16", "W4A16_ASYM"]
    print(f"transformers {transformers.__version__}, compressed-tensors {compressed_tensors.__version__}")
    done = []
    for model in sys.argv[2:]:
        folder, _, group = model.partition(":")
        with tempfile.TemporaryDirectory() as work:
            done += [check(sys.argv[1], folder, p, int(group or 128), pathlib.Path(work)) for p in presets]
    sys.exit(0 if done and all(done) else 1)


if __name__ == "__main__":
    main()
