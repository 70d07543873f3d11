"""Core's sampling, as its KSampler node calls it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
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


POINTS = 256  # of a schedule that are asked for


def schedule_of(model_sampling: Any) -> Callable[[float], float] | None:
    """How much of a model's own schedule lies behind at a noise level: the inverse of core's ``percent_to_sigma``.

    Args:
        model_sampling: the model's, as it is for the run: it knows the shift.

    Returns:
        (sigma) -> 0 at the most noise to 1 at none; None for one that core's way does not know.
    """
    percent_to_sigma = getattr(model_sampling, "percent_to_sigma", None)
    if percent_to_sigma is None:
        return None
    inner = [float(percent_to_sigma(i / POINTS)) for i in range(1, POINTS)]
    most = max(float(model_sampling.sigma_max), inner[0])
    falling = [-level for level in (most, *inner, 0.0)]
    if any(later < earlier for earlier, later in zip(falling, falling[1:], strict=False)):
        return None

    def behind(sigma: float) -> float:
        after = bisect_left(falling, -sigma)
        if after == 0:
            return 0.0
        if after == len(falling):
            return 1.0
        before, level = falling[after - 1], falling[after]
        return (after - 1 + (-sigma - before) / (level - before)) / POINTS

    return behind


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
