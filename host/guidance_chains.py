"""Metric guidance on the objects of core's custom sampling: MODEL, GUIDER and SAMPLER."""

from __future__ import annotations

import copy
import json
from collections import deque
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.samplers

from .decode import check_latent_shape
from .errors import ConductorError
from .guidance_plan import GuidancePlan
from .guided_run import GuidedRun
from .guided_sampling import guide, networks_of, wrap_prediction

REPORTS = "lora_conductor.guidance_reports"
KEPT = 8


def guided_model(model: Any, plan: GuidancePlan) -> Any:
    """A MODEL whose runs are guided; its last reports ride on it. With the plan off, a plain clone."""
    if plan.is_off:
        return model.clone()
    plan.check(model.get_model_object("latent_format"))
    reports: deque[dict[str, Any]] = deque(maxlen=KEPT)
    patched = guide(model, plan, reports)
    patched.set_attachments(REPORTS, reports)
    return patched


def last_report(model: Any) -> str:
    """Scores of the last run of a guided MODEL, as JSON. Raises ConductorError if there was none."""
    reports = model.get_attachment(REPORTS)
    if not reports:
        raise ConductorError(
            "model: no guided run of this model is known. Connect the model from Metric Guidance, and the latent of a "
            "sampler that used it."
        )
    return json.dumps(reports[-1], allow_nan=False)


def guided_guider(guider: Any, plan: GuidancePlan) -> Any:
    """A copy of a GUIDER that guides as well; the one given stays as it is."""
    guided = copy.copy(guider)
    guided.model_patcher = guided_model(guider.model_patcher, plan)
    guided.model_options = guided.model_patcher.model_options
    return guided


def guided_sampler(sampler: Any, plan: GuidancePlan) -> Any:
    """A SAMPLER that guides as well; the one given stays as it is."""
    return sampler if plan.is_off else GuidedSampler(sampler, plan)


class GuidedSampler(comfy.samplers.Sampler):
    """Any SAMPLER with metric guidance. What it compares by is loaded when it starts: core knows only then of it."""

    def __init__(self, sampler: Any, plan: GuidancePlan) -> None:
        self._sampler = sampler
        self._plan = plan

    def __getattr__(self, name: str) -> Any:
        # Other packs read settings off samplers.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._sampler, name)

    def max_denoise(self, model_wrap: Any, sigmas: Any) -> Any:
        """As the sampler's own."""
        return self._sampler.max_denoise(model_wrap, sigmas)

    def sample(self, model_wrap: Any, sigmas: Any, extra_args: Any, callback: Any, noise: Any, *args, **kwargs) -> Any:
        """As the sampler's own, guided; model_wrap is the guider that samples."""
        guider = model_wrap
        model = guider.inner_model
        self._plan.check(model.latent_format)
        check_latent_shape(tuple(noise.shape))
        run = GuidedRun(self._plan, sigmas.tolist(), model.latent_format, model)
        # With the models of the run, so that none of them makes room for ours.
        loaded = [guider.model_patcher, *getattr(guider, "loaded_models", [])]
        comfy.model_management.load_models_gpu([*loaded, *networks_of(self._plan)], run.memory(tuple(noise.shape)))
        options = guider.model_options
        guider.model_options = comfy.model_patcher.create_model_options_clone(options)
        wrap_prediction(guider, run)
        try:
            run.encode_references()
            return self._sampler.sample(model_wrap, sigmas, extra_args, callback, noise, *args, **kwargs)
        finally:
            guider.model_options = options
            run.close()
