"""Metric guidance on a run of core's sampling, and on its objects: MODEL, GUIDER and SAMPLER.

Core's own sampling path runs, with each prediction corrected on the way.
"""

from __future__ import annotations

import copy
import json
from collections import deque
from collections.abc import Callable, Iterator, MutableSequence
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP

from ..core import ConductorError, SamplerCall, printable, sampled
from ..vision import check_latent_shape
from .memory import announcing
from .plan import GuidancePlan
from .run import GuidedRun

REPORTS = "lora_conductor.guidance_reports"
KEPT = 8  # reports that ride on a model
_KEY = "lora_conductor.guidance"
Reports = MutableSequence[dict[str, Any]]


def sample(model: Any, call: SamplerCall, plan: GuidancePlan) -> tuple[dict[str, Any], str]:
    """KSampler with a guidance plan -> LATENT and the run's scores as JSON (see `Telemetry.report`).

    With the plan off this is KSampler itself. Raises ConductorError, before sampling, for inputs that cannot work.
    """
    reports: list[dict[str, Any]] = []
    if not plan.is_off:
        plan.check(model.get_model_object("latent_format"))
        model = guide(model, plan, reports)
    latent = sampled(model, call)
    report = reports[0] if reports else {"version": 1, "guided": False}
    return latent, json.dumps(printable(report), allow_nan=False)


def guide(model: Any, plan: GuidancePlan, reports: Reports) -> Any:
    """A clone of the MODEL whose sampling runs are guided; each run that ends appends its report to `reports`."""

    def run_guided(executor: Any, noise: torch.Tensor, latent_image: Any, sampler: Any, sigmas: Any, *args, **kwargs):
        guider = executor.class_obj
        latent_format = model.get_model_object("latent_format")
        with guiding(guider, plan, model.model, latent_format, sigmas, noise, reports) as run:
            _wrap(guider, WrappersMP.PREPARE_SAMPLING, announcing(run.memory(tuple(noise.shape))))
            run.encode_references()
            output = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
            run.score(output)
            return output

    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, _KEY, run_guided)
    # Loaded and accounted for together with the model, so that core does not offload it under the sampler's feet.
    patched.set_additional_models(_KEY, networks_of(plan))
    return patched


@contextmanager
def guiding(
    guider: Any,
    plan: GuidancePlan,
    model: Any,
    latent_format: Any,
    sigmas: torch.Tensor,
    noise: torch.Tensor,
    reports: Reports | None = None,
) -> Iterator[GuidedRun]:
    """A run that the guider's predictions go through while this lasts; then it is closed, its report in `reports`.

    model: the core BaseModel that samples. noise: for its latents; ConductorError if those are no pictures.
    """
    check_latent_shape(tuple(noise.shape))
    run = GuidedRun(plan, sigmas.tolist(), latent_format, model)
    # The guider's options are a copy made for this run: what is hung in here is gone when it ends, and two runs of one
    # model never share it.
    options = guider.model_options
    guider.model_options = comfy.model_patcher.create_model_options_clone(options)
    _wrap(guider, WrappersMP.PREDICT_NOISE, run.predict)
    try:
        yield run
    finally:
        guider.model_options = options
        run.close()
        if reports is not None:
            reports.append(run.report())


def networks_of(plan: GuidancePlan) -> list[Any]:
    """The patchers of all networks a plan brings along."""
    sources = (plan.vae, plan.clip_encoder, plan.dino_encoder, plan.held_out_encoder)
    return [source.patcher for source in sources if source is not None]


def _wrap(guider: Any, kind: str, wrapper: Callable[..., Any]) -> None:
    comfy.patcher_extension.add_wrapper_with_key(kind, _KEY, wrapper, guider.model_options, is_model_options=True)


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
    return json.dumps(printable(reports[-1]), allow_nan=False)


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
        with guiding(guider, self._plan, model, model.latent_format, sigmas, noise) as run:
            # With the models of the run, so that none of them makes room for ours.
            loaded = [guider.model_patcher, *getattr(guider, "loaded_models", [])]
            comfy.model_management.load_models_gpu([*loaded, *networks_of(self._plan)], run.memory(tuple(noise.shape)))
            run.encode_references()
            return self._sampler.sample(model_wrap, sigmas, extra_args, callback, noise, *args, **kwargs)
