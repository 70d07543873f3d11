"""What routing costs: time of a sampling step relative to LoRAs merged by ComfyUI.

A full-size SD1.5 UNet (860M parameters, random weights), CFG (batch 2), two LoRAs on the 192 layers of its transformer
blocks; at 64 px its latents are tiny, and what is asked of the processor weighs more than what it computes. Variants
are timed in turn, round after round, and compared by the median of their per-round ratios, so that a noisy machine
disturbs all of them alike. Wall time is what a user waits for; the processor time of all threads is what the work
takes, and on a busy machine the steadier of the two.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..full_size import sample, sd15_unet

RANK = 16


@dataclass(frozen=True)
class Setting:
    """Rank of both LoRAs, and the picture's size in pixels."""

    rank: int
    size: int

    def __str__(self) -> str:
        return f"rank {self.rank}, {self.size} px"


SETTINGS = Setting(RANK, 256), Setting(64, 256), Setting(RANK, 64)
GPU_SETTINGS = Setting(RANK, 512), Setting(RANK, 1024), Setting(64, 1024)
Ratios = dict[str, tuple[float, float]]
"""By variant, wall and processor time of a step over merged."""


def lora_file(path: Path, model, seed: int, rank: int) -> Path:
    """A LoRA on every projection of the transformer blocks: attention, feed-forward, in and out."""
    import torch
    from safetensors.torch import save_file

    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name, module in model.model.diffusion_model.named_modules():
        if name.rpartition(".")[2] in ("proj_in", "proj_out") or (
            hasattr(module, "in_features") and ".transformer_blocks." in name
        ):
            out, *inner = module.weight.shape
            prefix, ones = f"diffusion_model.{name}", [1] * (len(inner) - 1)
            tensors[f"{prefix}.lora_down.weight"] = torch.randn(rank, *inner, generator=generator) * 0.05
            tensors[f"{prefix}.lora_up.weight"] = torch.randn(out, rank, *ones, generator=generator) * 0.05
    save_file(tensors, path)
    return path


def variants(model, folder: Path, rank: int = RANK):
    """Name -> model with the two LoRAs, by core's merge and by each of our policies."""
    import comfy.sd
    import comfy.utils

    from lora_conductor.fusion.policies import RECOMMENDED, KLSoft, Paper, Sum
    from lora_conductor.fusion.routing import Refinement
    from lora_conductor.host.fusing import attachment_of, fused, set_policy

    files = [lora_file(folder / f"{i}.safetensors", model, i, rank) for i in (1, 2)]
    merged = model
    for file in files:
        merged, _ = comfy.sd.load_lora_for_models(merged, None, comfy.utils.load_torch_file(str(file)), 0.5, 0)
    loaded = fused(model, (files[0], 0.5), (files[1], 0.5))
    print(f"{attachment_of(loaded).spec.shared_layers} layers with two LoRAs of rank {rank}", flush=True)
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


def ratios(setting: Setting, rounds: int, steps: int, *, gpu: bool = False) -> Ratios:
    """Time all variants in turn, and compare them."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        models = variants(sd15_unet(torch.float16 if gpu else torch.float32), Path(folder), setting.rank)
        times: dict[str, list[list[float]]] = {name: [] for name in models}
        for round_ in range(rounds + 1):
            for name, model in models.items():
                seconds = time_steps(model, steps, setting.size)
                if round_:  # the first round warms up
                    times[name].append(seconds)
            if round_:
                walls = ", ".join(f"{name} {each[-1][0]:.3f} s" for name, each in times.items())
                print(f"{setting}, round {round_}/{rounds}: {walls}", flush=True)
    base = times["merged (core)"]

    def ratio(each: list[list[float]], kind: int) -> float:
        return statistics.median(a[kind] / b[kind] for a, b in zip(each, base, strict=True))

    return {name: (ratio(each, 0), ratio(each, 1)) for name, each in times.items() if each is not base}


def table(settings: Sequence[Setting], rounds: int, steps: int, *, gpu: bool = False) -> Iterator[str]:
    """As a page shows it."""
    found = {str(setting): ratios(setting, rounds, steps, gpu=gpu) for setting in settings}
    where = f"{_card()}, float16" if gpu else "this machine's CPU, float32"
    yield (
        f"A step of a full-size SD1.5 UNet with CFG on {where}, over the same with the LoRAs merged by ComfyUI: wall "
        f"time / processor time, medians of {rounds} rounds.\n"
    )
    yield f"| | {' | '.join(found)} |"
    yield "|---" * (len(found) + 1) + "|"
    for name in next(iter(found.values())):
        yield f"| {name} | " + " | ".join("{:.2f} / {:.2f}".format(*each[name]) for each in found.values()) + " |"


def write_traces(folder: Path, setting: Setting, *, gpu: bool = False) -> list[Path]:
    """What PyTorch's profiler sees of a step, merged and with the default policy, for chrome://tracing or Perfetto."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    folder.mkdir(parents=True, exist_ok=True)
    watched = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    written = []
    with tempfile.TemporaryDirectory() as files:
        models = variants(sd15_unet(torch.float16 if gpu else torch.float32), Path(files), setting.rank)
        for name in ("merged (core)", "recommended"):
            sample(models[name], 1, setting.size)  # loads and patches
            with profile(activities=watched) as profiled:
                sample(models[name], 1, setting.size)
            written.append(folder / f"{name.partition(' ')[0]}.json")
            profiled.export_chrome_trace(str(written[-1]))
    return written


def _card() -> str:
    import torch

    return f"{torch.cuda.get_device_name()} (torch {torch.__version__})"
