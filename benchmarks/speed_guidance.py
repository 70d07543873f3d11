"""What metric guidance costs at full size: whole runs with the default settings against whole runs without.

A full-size SD1.5 UNet (860M parameters, random weights), CFG (batch 2), two ViT-S encoders and a TAESD preview decoder,
all with random weights: time does not depend on them. The runs take turns, round after round, and are compared by the
median of their per-round ratios, by the clock and by CPU time, which a busy machine disturbs less. "computed" is what
the guided run's own telemetry says of itself: its time over its time less its corrections. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .full_size import Timing, sample, sd15_unet
from .guidance_defaults import guidance_defaults
from .host import enter_host


def encoder(seed: int):
    """A ViT-S/16 at 224 px, through the pack's own builder."""
    import timm
    import torch

    from lora_conductor.guidance.encoders import build_from_file
    from lora_conductor.host.vision import MetricEncoder

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


def plans() -> dict[str, Any]:
    """Guidance by the node's default settings, and with its strengths at 0."""
    import torch

    from lora_conductor.guidance.schedules import GuidanceWindow
    from lora_conductor.host.guiding import GuidancePlan

    defaults = guidance_defaults()
    window = GuidanceWindow(*(defaults[name] for name in ("start", "end", "every")))
    pictures = torch.rand(2, 1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    encoders = encoder(1), encoder(2)

    def plan(strength: float) -> Any:
        return GuidancePlan(strength, strength, defaults["strength"], window, None, *pictures, *encoders)

    return {"default": plan(1.0), "strengths 0": plan(0.0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("against", nargs="*", default=["default", "strengths 0"], help="what to time besides none")
    parser.add_argument("--steps", type=int, default=20, help="of a run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--warm-up", type=int, default=2, help="steps of a run of each kind before all others")
    parser.add_argument("--gpu", action="store_true", help="time on the GPU, in float16")
    options = parser.parse_args()
    enter_host(cpu=not options.gpu)

    import torch

    from lora_conductor.host.guiding import REPORTS, guided_model

    with tempfile.TemporaryDirectory() as folder:
        preview_decoder(Path(folder))
        model = sd15_unet(torch.float16 if options.gpu else torch.float32)
        made = plans()
        models = {"none": model, **{name: guided_model(model, made[name]) for name in options.against}}
        for variant in models.values():
            sample(variant, options.warm_up, options.size)
        runs: dict[str, list[Timing]] = {name: [] for name in models}
        corrections: list[list[float]] = []
        for round_ in range(options.rounds):
            for name, variant in models.items():
                runs[name].append(sample(variant, options.steps, options.size))
                print(f"round {round_ + 1}, {name}: {runs[name][-1].total:.2f} s", flush=True)
            if "default" in models:
                report = models["default"].get_attachment(REPORTS)[-1]
                corrections.append([evaluation["seconds"] for evaluation in report["evaluations"]])

    def ratios(measure: Callable[[Timing], float]) -> dict[str, float]:
        base = [measure(run) for run in runs["none"]]
        return {
            name: round(statistics.median(measure(a) / b for a, b in zip(timed, base, strict=True)), 4)
            for name, timed in runs.items()
        }

    own = [
        run.total / (run.total - sum(spent)) for run, spent in zip(runs.get("default", []), corrections, strict=True)
    ]
    figures = {
        "size": options.size,
        "steps": options.steps,
        "run_s": {name: round(statistics.median(run.total for run in timed), 2) for name, timed in runs.items()},
        "corrections_s": corrections,
        "by_the_clock": ratios(lambda run: run.total),
        "by_cpu_time": ratios(lambda run: run.cpu),
        "computed": round(statistics.median(own), 4) if own else None,
    }
    for measure in ("by_the_clock", "by_cpu_time"):
        print(f"{measure}: " + ", ".join(f"{name} {ratio:.3f}x" for name, ratio in figures[measure].items()))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
