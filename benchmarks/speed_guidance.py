"""What metric guidance costs at full size: one correction against one sampling step.

A full-size SD1.5 UNet (860M parameters, random weights), 512 px, CFG (batch 2), two ViT-S encoders and a TAESD preview
decoder, all with random weights: time does not depend on them. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from speed import enter_host, sd15_unet


def encoder(seed: int):
    """A ViT-S/16 at 224 px, through the pack's own builder."""
    import timm
    import torch

    from lora_conductor.guidance.encoders import build_from_file
    from lora_conductor.host.encoders import MetricEncoder

    torch.manual_seed(seed)
    weights = timm.create_model("vit_small_patch16_224", num_classes=0).state_dict()
    return MetricEncoder(build_from_file(weights, None, "timm", "vit_small_patch16_224"))


def preview_decoder(folder: Path) -> None:
    """A TAESD decoder file where the host finds it."""
    import folder_paths
    import torch
    from comfy.taesd.taesd import TAESD

    decoder = TAESD(latent_channels=4).taesd_decoder
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.03)
    torch.save(decoder.state_dict(), folder / "taesd_decoder.pth")
    folder_paths.add_model_folder_path("vae_approx", str(folder))


def run(model, steps: int, size: int) -> list[float]:
    """Seconds of each step but the first, which includes loading."""
    import comfy.sample
    import torch

    stamps = []
    latent = torch.zeros(1, 4, size // 8, size // 8)
    cond = [[torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(1)), {}]]
    with torch.inference_mode():
        comfy.sample.sample(
            model,
            comfy.sample.prepare_noise(latent, 0),
            steps,
            7.0,
            "euler",
            "normal",
            cond,
            cond,
            latent,
            callback=lambda *_: stamps.append(time.perf_counter()),
            disable_pbar=True,
            seed=0,
        )
    return [later - earlier for earlier, later in zip(stamps, stamps[1:], strict=False)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5, help="timed steps; every other one is guided")
    parser.add_argument("--of", type=int, default=20, help="steps of the run whose cost is told")
    parser.add_argument("--size", type=int, default=512)
    options = parser.parse_args()
    enter_host(cpu=True)

    import torch

    from lora_conductor.guidance.schedules import GuidanceWindow
    from lora_conductor.host.guidance_plan import GuidancePlan
    from lora_conductor.host.guided_sampling import guide

    with tempfile.TemporaryDirectory() as folder:
        preview_decoder(Path(folder))
        pictures = torch.rand(2, 1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
        window = GuidanceWindow(0.0, 1.0, 2)
        plan = GuidancePlan(1.0, 1.0, 0.1, window, None, *pictures, encoder(1), encoder(2))
        reports: list = []
        seconds = run(guide(sd15_unet(torch.float32), plan, reports), options.steps + 1, options.size)
    corrections = {e["step"]: e["seconds"] for e in reports[0]["evaluations"]}
    # The callback comes after the model call, so that an interval holds the call, and the correction, of the step.
    step = statistics.median(t - corrections.get(i, 0.0) for i, t in enumerate(seconds, 1))
    correction = statistics.median([t for i, t in corrections.items() if i])
    default = GuidanceWindow(0.2, 0.8, 6)
    guided = sum(default.is_active(i, options.of) for i in range(options.of))
    ratio = 1 + guided * correction / (options.of * step)
    print(f"a step {step:.2f} s, a correction {correction:.2f} s; {guided} guided of {options.of} steps: {ratio:.3f}x")
    print(json.dumps({"step_s": round(step, 3), "correction_s": round(correction, 3), "ratio": round(ratio, 4)}))


if __name__ == "__main__":
    main()
