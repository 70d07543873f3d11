"""What routing costs: time of a sampling step relative to LoRAs merged by ComfyUI.

A full-size SD1.5 UNet (860M parameters, random weights), 256 px, CFG (batch 2), two rank-16 LoRAs on the 192 layers of
its transformer blocks. Variants are timed in turn, round after round, and compared by the median of their per-round
ratios, so that a noisy machine disturbs all of them alike. Wall time is what a user waits for; the processor time of
all threads is what the work takes, and on a busy machine the steadier of the two. Run it with ``make bench-speed``; the
last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.append(str(REPO / "tools"))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torchvision_shim  # noqa: E402
from bootstrap_host import find_host  # noqa: E402
from repo_paths import link_package  # noqa: E402

RANK = 16


def enter_host(cpu: bool) -> None:
    """Make the host importable in this process."""
    sys.path[:0] = [str(find_host()), str(link_package())]
    torchvision_shim.install()
    from comfy.cli_args import args

    args.cpu = cpu


def sd15_unet(dtype):
    """A full-size SD1.5 UNet with random weights, on a ModelPatcher."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models
    import torch

    config = dict(
        comfy.supported_models.SD15.unet_config,
        image_size=32,
        in_channels=4,
        out_channels=4,
        num_res_blocks=[2, 2, 2, 2],
        channel_mult=[1, 2, 4, 4],
        transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
        transformer_depth_output=[1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        transformer_depth_middle=1,
        num_heads=8,
        use_spatial_transformer=True,
        legacy=False,
        dtype=dtype,
    )
    model_config = comfy.supported_models.SD15(config)
    model_config.unet_config = config
    model_config.set_inference_dtype(dtype, None)
    device = comfy.model_management.get_torch_device()
    model = model_config.get_model({}, device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1:
                p.copy_(torch.randn(p.shape, generator=generator) * p[0].numel() ** -0.5)
            else:
                p.fill_(float(name.endswith("weight")))
    return comfy.model_patcher.ModelPatcher(model, device, torch.device("cpu"))


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


def time_steps(model, steps: int, size: int) -> tuple[float, float]:
    """Wall and processor seconds a step.

    Loading and patching come before the first callback, and freezing before the second.
    """
    import comfy.model_management
    import comfy.sample
    import torch

    stamps = []

    def stamp(*_):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        stamps.append((time.perf_counter(), time.process_time()))

    latent = torch.zeros(1, 4, size // 8, size // 8)
    cond = [[torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(1)), {}]]
    with torch.inference_mode():
        comfy.sample.sample(
            model,
            comfy.sample.prepare_noise(latent, 0),
            steps + 2,
            7.0,
            "euler",
            "normal",
            cond,
            cond,
            latent,
            callback=stamp,
            disable_pbar=True,
            seed=0,
        )
    wall, processor = ((last - first) / steps for first, last in zip(stamps[1], stamps[-1], strict=True))
    return wall, processor


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
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
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


if __name__ == "__main__":
    main()
