#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""AutoRound on the samples that `wkvq calibrate` would draw: MODEL -> OUT, a checkpoint with the rounded weights.

    python3 -m venv v && v/bin/pip install auto-round torch transformers tokenizers safetensors
    v/bin/python tools/peers/autoround.py MODEL OUT --wkvq build/tools/wkvq --data wiki.train.raw

OUT holds full-precision numbers on AutoRound's 4-bit grid ("fake" quantization), so that `wkvq eval OUT` evaluates them like any
checkpoint, and `--simulate rtn --set weights.bits=16` adds a quantized cache. OUT/autoround.json has the version, the settings and
the time of the quantization alone: elapsed seconds, and user seconds of all threads.

AutoRound's own recipe is --samples 128 --seqlen 2048 --iters 200 --batch 8. It takes hours on a CPU. With --keep FOLDER, each
finished block is kept there, and the same command, given again after a stop, continues behind them and gives what one run gives.
"""
import argparse, importlib.metadata, json, os, pathlib, random, shutil, subprocess, sys, tempfile, time
import torch
from auto_round import AutoRound
from transformers import AutoModelForCausalLM, AutoTokenizer

from joined import joined


def ids_of(wkvq, model, path):
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as f:
        f.write(joined(path.read_text(encoding="utf-8")))
        f.flush()
        out = subprocess.run([wkvq, "tokenize", model, f.name, "--json", "-q"], check=True, capture_output=True)
    return json.loads(out.stdout)["ids"]


def windows(ids, samples, seqlen, seed):
    """Draws windows as GPTQ's code does, and as wkvq does."""
    rng = random.Random(seed)
    starts = [rng.randint(0, len(ids) - seqlen - 1) for _ in range(samples)]
    return [torch.tensor([ids[s : s + seqlen]]) for s in starts]


def options(what, samples):
    """The command line of a program that quantizes with the windows of `wkvq calibrate`."""
    ap = argparse.ArgumentParser(description=what)
    ap.add_argument("model")
    ap.add_argument("out", type=pathlib.Path)
    ap.add_argument("--wkvq", required=True)
    ap.add_argument("--data", type=pathlib.Path, required=True)
    ap.add_argument("--samples", type=int, default=samples)
    ap.add_argument("--seqlen", type=int, default=1024)
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--group", type=int, default=128)
    ap.add_argument("--threads", type=int, default=2)
    return ap


def open_model(a):
    """Returns the model and its windows, as the command line says."""
    torch.set_num_threads(a.threads)
    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32).eval()
    return model, windows(ids_of(a.wkvq, a.model, a.data), a.samples, a.seqlen, a.seed)


def save(what, path):
    """Writes a file that exists whole or not at all."""
    part = path.with_name(path.name + ".part")
    torch.save(what, part)
    part.replace(path)


class Keep:
    """The finished blocks of AutoRound in a folder: I.pt has block I's tensors, times and generators, I.out.pt its outputs. The
    outputs of the last block alone are kept, as only the next block reads them."""

    def __init__(self, folder, settings):
        folder.mkdir(parents=True, exist_ok=True)
        said = folder / "settings.json"
        if not said.exists():
            said.write_text(json.dumps(settings) + "\n")
        if json.loads(said.read_text()) != settings:
            sys.exit(f"error: {folder} holds blocks of other settings: {said.read_text().strip()}")
        self.folder, self.seconds, self.user = folder, 0.0, 0.0

    def paths(self, block):
        return self.folder / f"{block}.pt", self.folder / f"{block}.out.pt"

    def load(self, index, block):
        """Gives a block the values that an earlier run found. Returns its outputs; None where the next block is kept as well."""
        path, out = self.paths(index)
        kept = torch.load(path, weights_only=False)
        block.load_state_dict(kept["block"])
        torch.set_rng_state(kept["torch"])
        random.setstate(kept["random"])
        self.seconds, self.user = self.seconds + kept["seconds"], self.user + kept["user"]
        return torch.load(out, weights_only=False) if out.exists() else (None, None)

    def save(self, index, block, outputs, seconds, user):
        path, out = self.paths(index)
        save(outputs, out)
        save({"block": block.state_dict(), "torch": torch.get_rng_state(), "random": random.getstate(), "seconds": seconds,
              "user": user}, path)
        self.paths(index - 1)[1].unlink(missing_ok=True)

    def install(self):
        """Puts the folder between AutoRound's loop over the blocks and the work on one."""
        from auto_round.algorithms.composer import AlgorithmComposer
        work, keep = AlgorithmComposer.compress_block, self

        def compress_block(self, block, fp_inputs, input_others, block_ctx, **more):
            index = block_ctx.block_index
            if keep.paths(index)[0].exists():
                return keep.load(index, block)
            start, used = time.monotonic(), os.times().user
            outputs = work(self, block, fp_inputs, input_others, block_ctx, **more)
            keep.save(index, block, outputs, time.monotonic() - start, os.times().user - used)
            return outputs

        AlgorithmComposer.compress_block = compress_block


def main():
    ap = options(__doc__.split("\n")[0], samples=32)
    ap.add_argument("--iters", type=int, default=100)
    ap.add_argument("--batch", type=int, default=2)
    ap.add_argument("--keep", type=pathlib.Path, help="a folder for the finished blocks, from which the same command continues")
    a = ap.parse_args()
    note = {k: v for k, v in vars(a).items() if isinstance(v, int)}
    note |= {"version": importlib.metadata.version("auto-round")}
    keep = Keep(a.keep, note | {"model": a.model, "data": str(a.data)}) if a.keep else None
    if keep:
        keep.install()

    torch.manual_seed(a.seed)
    model, samples = open_model(a)
    start, used = time.monotonic(), os.times().user
    rounder = AutoRound(model, AutoTokenizer.from_pretrained(a.model), scheme="W4A16", bits=4, group_size=a.group, sym=False,
                        iters=a.iters, batch_size=a.batch, nsamples=a.samples, seqlen=a.seqlen, dataset=samples,
                        device_map="cpu", enable_torch_compile=False)
    rounded, _ = rounder.quantize()
    seconds, user = time.monotonic() - start, os.times().user - used
    if keep:
        seconds, user = seconds + keep.seconds, user + keep.user

    rounded.to(torch.float16).save_pretrained(a.out)
    for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "config.json"):
        if (pathlib.Path(a.model) / name).exists():
            shutil.copy(pathlib.Path(a.model) / name, a.out)
    note |= {"seconds": seconds, "user_seconds": user}
    (a.out / "autoround.json").write_text(json.dumps(note) + "\n")
    print(f"{a.out}: {seconds:.0f} s, {user:.0f} s of user time")


if __name__ == "__main__":
    main()
