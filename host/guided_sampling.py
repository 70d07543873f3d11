"""Sampling with metric guidance: core's own sampling path, with each prediction corrected on the way."""

from __future__ import annotations

import json
from collections.abc import Callable, MutableSequence
from typing import Any

import comfy.model_patcher
import comfy.patcher_extension
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP

from .decode import check_latent_shape
from .guidance_memory import announcing
from .guidance_plan import GuidancePlan
from .guided_run import GuidedRun

SAMPLER_NAMES: list[str] = comfy.samplers.KSampler.SAMPLERS
SCHEDULER_NAMES: list[str] = comfy.samplers.KSampler.SCHEDULERS

_KEY = "lora_conductor.guidance"


def sample(
    model: Any,
    seed: int,
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    positive: Any,
    negative: Any,
    latent_image: dict[str, Any],
    denoise: float,
    plan: GuidancePlan,
) -> tuple[dict[str, Any], str]:
    """KSampler's arguments and a guidance plan -> LATENT and the run's scores as JSON (see `GuidedRun.report`).

    With the plan off this is KSampler itself. Raises ConductorError, before sampling, for inputs that cannot work.
    """
    from nodes import common_ksampler  # ComfyUI's; its import loads every core node, so not at our import

    reports: list[dict[str, Any]] = []
    if not plan.is_off:
        plan.check(model.get_model_object("latent_format"))
        model = guide(model, plan, reports)
    (latent,) = common_ksampler(
        model, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent_image, denoise=denoise
    )
    report = reports[0] if reports else {"version": 1, "guided": False}
    return latent, json.dumps(report, allow_nan=False)


def guide(model: Any, plan: GuidancePlan, reports: MutableSequence[dict[str, Any]]) -> Any:
    """A clone of the MODEL whose sampling runs are guided; each run that ends appends its report to `reports`."""

    def run_guided(executor: Any, noise: torch.Tensor, latent_image: Any, sampler: Any, sigmas: Any, *args, **kwargs):
        guider = executor.class_obj
        check_latent_shape(tuple(noise.shape))
        run = GuidedRun(plan, sigmas.tolist(), model.get_model_object("latent_format"), model.model)
        memory = run.memory(tuple(noise.shape))
        # The guider's options are a copy made for this run: what is hung in here is gone when it ends, and two runs of
        # one model never share it.
        options = guider.model_options
        guider.model_options = comfy.model_patcher.create_model_options_clone(options)
        wrap_prediction(guider, run)
        _wrap(guider, WrappersMP.PREPARE_SAMPLING, announcing(memory))
        try:
            run.encode_references()
            output = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
            run.score(output)
            return output
        finally:
            guider.model_options = options
            run.close()
            reports.append(run.report())

    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, _KEY, run_guided)
    # Loaded and accounted for together with the model, so that core does not offload it under the sampler's feet.
    patched.set_additional_models(_KEY, networks_of(plan))
    return patched


def networks_of(plan: GuidancePlan) -> list[Any]:
    """The patchers of all networks a plan brings along."""
    sources = (plan.vae, plan.clip_encoder, plan.dino_encoder, plan.held_out_encoder)
    return [source.patcher for source in sources if source is not None]


def wrap_prediction(guider: Any, run: GuidedRun) -> None:
    """Have the guider's predictions go through the run; the guider's options must be a copy made for it."""
    _wrap(guider, WrappersMP.PREDICT_NOISE, run.predict)


def _wrap(guider: Any, kind: str, wrapper: Callable[..., Any]) -> None:
    comfy.patcher_extension.add_wrapper_with_key(kind, _KEY, wrapper, guider.model_options, is_model_options=True)
