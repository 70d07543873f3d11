"""What routing costs: time of a sampling step relative to LoRAs merged by ComfyUI.

A full-size SD1.5 UNet (860M parameters, random weights), 256 px, CFG (batch 2), two rank-16 LoRAs on the 192 layers of
its transformer blocks. Variants are timed in turn, round after round, and compared by the median of their per-round
ratios, so that a noisy machine disturbs all of them alike. Wall time is what a user waits for; the processor time of
all threads is what the work takes, and on a busy machine the steadier of the two. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from ..full_size import sample, sd15_unet

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
    from lora_conductor.fusion.routing import Refinement
    from lora_conductor.host.fusing import attachment_of, fused, set_policy

    files = [lora_file(folder / f"{i}.safetensors", model, i) for i in (1, 2)]
    merged = model
    for file in files:
        merged, _ = comfy.sd.load_lora_for_models(merged, None, comfy.utils.load_torch_file(str(file)), 0.5, 0)
    loaded = fused(model, (files[0], 0.5), (files[1], 0.5))
    print(f"{attachment_of(loaded).spec.shared_layers} layers with two LoRAs of rank {RANK}", flush=True)
    policies = {"sum": Sum(), "paper": Paper(), "kl_soft": KLSoft(), "recommended": RECOMMENDED}
    routed = {name: set_policy(loaded, policy) for name, policy in policies.items()}
    return {
        "merged (core)": merged,
        **routed,
        "recommended, frozen": set_policy(loaded, RECOMMENDED, Refinement(freeze_after=1)),
    }


def time_steps(model, steps: int, size: int) -> list[float]:
    """Wall and processor seconds a step.

    Loading and patching come before the first one ends, and freezing before the second.
    """
    timing = sample(model, steps + 2, size)
    return [(stamps[-1] - stamps[1]) / steps for stamps in (timing.steps, timing.cpu_steps)]


def time_all(options: argparse.Namespace) -> None:
    """Time all variants in turn, and print their ratios."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        models = variants(sd15_unet(torch.float16 if options.gpu else torch.float32), Path(folder))
        times: dict[str, list[list[float]]] = {name: [] for name in models}
        for round_ in range(options.rounds + 1):
            for name, model in models.items():
                seconds = time_steps(model, options.steps, options.size)
                if round_:  # the first round warms up
                    times[name].append(seconds)
            if round_:
                walls = ", ".join(f"{name} {each[-1][0]:.3f} s" for name, each in times.items())
                print(f"round {round_}/{options.rounds}: {walls}", flush=True)
    base = times["merged (core)"]
    ratios = {
        name: [statistics.median(a[i] / b[i] for a, b in zip(each, base, strict=True)) for i in range(2)]
        for name, each in times.items()
    }
    print(f"\n{'a step over merged':<22}{'wall time':>12}{'processor time':>18}")
    for name, (wall, processor) in ratios.items():
        print(f"{name:<22}{wall:>12.3f}{processor:>18.3f}")
    summary = {
        kind: {name: round(ratio[i], 3) for name, ratio in ratios.items()}
        for i, kind in enumerate(("step_time_over_merged", "step_processor_time_over_merged"))
    }
    print(json.dumps(summary))
