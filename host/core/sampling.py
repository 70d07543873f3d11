"""Core's sampling, as its KSampler node calls it."""

from __future__ import annotations

import comfy.model_patcher
import comfy.patcher_extension
import comfy.samplers

SAMPLER_NAMES: list[str] = comfy.samplers.KSampler.SAMPLERS
SCHEDULER_NAMES: list[str] = comfy.samplers.KSampler.SCHEDULERS
