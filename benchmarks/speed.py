"""What routing costs: time of a sampling step relative to LoRAs merged by ComfyUI.

A full-size SD1.5 UNet (860M parameters, random weights), 256 px, CFG (batch 2), two rank-16 LoRAs on the 192 layers of
its transformer blocks. Variants are timed in turn, round after round, and compared by the median of their per-round
ratios, so that a noisy machine disturbs all of them alike. Run it with ``make bench-speed``; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from full_size import enter_host, sample, sd15_unet

RANK = 16


def lora_file(path: Path, model, seed: int) -> Path:
    """A rank-16 LoRA on every projection of the transformer blocks: attention, feed-forward, in and out."""
    import torch
    from safetensors.torch import save_file

    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name, module in model.model.diffusion_model.named_modules():
        if name.rpartition(".")[2] in ("proj_in", "proj_out") or (
            hasattr(module, "in_features") and ".transformer_blocks." in name
        ):
            out, *inner = module.weight.shape
            prefix, ones = f"diffusion_model.{name}", [1] * (len(inner) - 1)
            tensors[f"{prefix}.lora_down.weight"] = torch.randn(RANK, *inner, generator=generator) * 0.05
            tensors[f"{prefix}.lora_up.weight"] = torch.randn(out, RANK, *ones, generator=generator) * 0.05
    save_file(tensors, path)
    return path


def variants(model, folder: Path):
    """Name -> model with the two LoRAs, by core's merge and by each of our policies."""
    import comfy.sd
    import comfy.utils

    from lora_conductor.fusion.policies import RECOMMENDED, KLSoft, Paper, Sum
    from lora_conductor.fusion.refinement import Refinement
    from lora_conductor.host.fusion_patch import add_loras, set_policy
    from lora_conductor.host.lora_patches import model_patches
    from lora_conductor.host.lora_reading import read_lora

    files = [lora_file(folder / f"{i}.safetensors", model, i) for i in (1, 2)]
    merged = model
    for file in files:
        merged, _ = comfy.sd.load_lora_for_models(merged, None, comfy.utils.load_torch_file(str(file)), 0.5, 0)
    patches = [model_patches(read_lora(f.name, str(f)), model) for f in files]
    print(f"{len(patches[0].routed)} layers with two LoRAs of rank {RANK}", flush=True)
    fused = add_loras(model, [(patches[0], "subject", 0.5), (patches[1], "style", 0.5)])
    policies = {"sum": Sum(), "paper": Paper(), "kl_soft": KLSoft(), "recommended": RECOMMENDED}
    routed = {name: set_policy(fused, policy) for name, policy in policies.items()}
    return {
        "merged (core)": merged,
        **routed,
        "recommended, frozen": set_policy(fused, RECOMMENDED, Refinement(freeze_after=1)),
    }


def time_steps(model, steps: int, size: int) -> float:
    """Seconds a step. Loading and patching come before the first one ends, and freezing before the second."""
    stamps = sample(model, steps + 2, size).steps
    return (stamps[-1] - stamps[1]) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="timed steps a round")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--gpu", action="store_true", help="time on the GPU, in float16")
    options = parser.parse_args()
    enter_host(cpu=not options.gpu)

    import torch

    with tempfile.TemporaryDirectory() as folder:
        models = variants(sd15_unet(torch.float16 if options.gpu else torch.float32), Path(folder))
        times: dict[str, list[float]] = {name: [] for name in models}
        for round_ in range(options.rounds + 1):
            for name, model in models.items():
                seconds = time_steps(model, options.steps, options.size)
                if round_:  # the first round warms up
                    times[name].append(seconds)
            if round_:
                print(f"round {round_}/{options.rounds}: " + ", ".join(f"{n} {t[-1]:.3f} s" for n, t in times.items()))
    base = times["merged (core)"]
    ratios = {n: statistics.median(a / b for a, b in zip(t, base, strict=True)) for n, t in times.items()}
    print(f"\n{'variant':<22}{'step time / merged':>20}")
    for name, ratio in ratios.items():
        print(f"{name:<22}{ratio:>20.3f}")
    print(json.dumps({"step_time_over_merged": {n: round(r, 3) for n, r in ratios.items()}}))


if __name__ == "__main__":
    main()
