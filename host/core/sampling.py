"""Core's sampling, as its KSampler node calls it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.samplers

SAMPLER_NAMES: list[str] = comfy.samplers.KSampler.SAMPLERS
SCHEDULER_NAMES: list[str] = comfy.samplers.KSampler.SCHEDULERS


@dataclass(frozen=True)
class SamplerCall:
    """KSampler's inputs besides the model: positive and negative are CONDITIONING, latent_image a LATENT."""

    seed: int
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    positive: Any
    negative: Any
    latent_image: dict[str, Any]
    denoise: float = 1.0


def sampled(model: Any, call: SamplerCall) -> dict[str, Any]:
    """The LATENT that KSampler makes of a MODEL and these inputs."""
    from nodes import common_ksampler  # ComfyUI's; its import loads every core node, so not at our import

    (latent,) = common_ksampler(
        model,
        call.seed,
        call.steps,
        call.cfg,
        call.sampler_name,
        call.scheduler,
        call.positive,
        call.negative,
        call.latent_image,
        denoise=call.denoise,
    )
    return latent
