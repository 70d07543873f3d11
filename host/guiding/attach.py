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

from ..core import ConductorError, Kept, Origin, SamplerCall, printable, sampled
from ..vision import check_latent_shape
from .memory import announcing
from .plan import GuidancePlan
from .run import GuidedRun
from .schedule import whole_schedule

REPORTS = "lora_conductor.guidance_reports"
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


def guide(model: Any, plan: GuidancePlan, reports: Reports, kept: Kept[dict[str, Any]] | None = None) -> Any:
    """A clone of the MODEL whose sampling runs are guided; each run that ends appends its report to `reports`.

    kept: given the reports of runs that made a latent, with it.
    """

    def run_guided(executor: Any, noise: torch.Tensor, latent_image: Any, sampler: Any, sigmas: Any, *args, **kwargs):
        guider = executor.class_obj
        latent_format = model.get_model_object("latent_format")
        sampling = guider.model_patcher.get_model_object("model_sampling")
        whole = whole_schedule(sigmas.tolist(), sampling, sampler, noise)
        with guiding(guider, plan, model.model, latent_format, whole, noise, reports) as run:
            _wrap(guider, WrappersMP.PREPARE_SAMPLING, announcing(run.memory(tuple(noise.shape))))
            run.encode_references()
            output = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
            run.score(output)
        if kept is not None:
            kept.add(output, run.report())
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
    sigmas: list[float],
    noise: torch.Tensor,
    reports: Reports | None = None,
) -> Iterator[GuidedRun]:
    """A run that the guider's predictions go through while this lasts; then it is closed, its report in `reports`.

    model: the core BaseModel that samples. sigmas: of the whole run. noise: for its latents; ConductorError if those
    are no pictures.
    """
    check_latent_shape(tuple(noise.shape))
    run = GuidedRun(plan, sigmas, latent_format, model, noise, lambda: _modules_beside(guider, plan))
    # The guider's options are a copy made for this run: what is hung in here is gone when it ends, and two runs of one
    # model never share it.
    options = guider.model_options
    guider.model_options = comfy.model_patcher.create_model_options_clone(options)
    _wrap(guider, WrappersMP.PREDICT_NOISE, run.predict)
    try:
        yield run
    except BaseException:
        run.stop()
        raise
    finally:
        guider.model_options = options
        run.close()
        if reports is not None:
            reports.append(run.report())


def networks_of(plan: GuidancePlan) -> list[Any]:
    """The patchers of all networks a plan brings along."""
    sources = (plan.vae, plan.clip_encoder, plan.dino_encoder, plan.held_out_encoder)
    return [source.patcher for source in sources if source is not None]


def _modules_beside(guider: Any, plan: GuidancePlan) -> list[torch.nn.Module]:
    """The networks that the guider loaded for its predictions: ControlNets, copies of the model on other devices."""
    ours = [patcher.model for patcher in networks_of(plan)]
    models = (patcher.model for patcher in getattr(guider, "loaded_models", []))
    return [m for m in models if isinstance(m, torch.nn.Module) and not any(m is own for own in ours)]


def _wrap(guider: Any, kind: str, wrapper: Callable[..., Any]) -> None:
    """Wrap outermost: what others leave out, as caches do with whole predictions, is guided all the same."""
    wrappers = guider.model_options.setdefault("transformer_options", {}).setdefault("wrappers", {})
    wrappers[kind] = {_KEY: [wrapper], **wrappers.get(kind, {})}


def guided_model(model: Any, plan: GuidancePlan) -> Any:
    """A MODEL whose runs are guided; its last reports ride on it. With the plan off, a plain clone."""
    if plan.is_off:
        return model.clone()
    plan.check(model.get_model_object("latent_format"))
    kept: Kept[dict[str, Any]] = Kept()
    patched = guide(model, plan, deque(maxlen=1), kept)
    patched.set_attachments(REPORTS, kept)
    return patched


def report_of_latent(model: Any, samples: Any, origin: Origin | None = None) -> str:
    """Scores of the guided run in which a MODEL made these samples, as JSON; where none is known, they say so."""
    reports = model.get_attachment(REPORTS)
    found = None if reports is None else reports.find(samples, origin)
    if found is None:
        why = (
            "model: no guided run of this model made this latent. Connect the model from Metric Guidance, and the "
            "latent of a sampler that used it."
        )
        found = {"version": 1, "guided": False, "note": why}
    return json.dumps(printable(found), allow_nan=False)


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

    @property
    def sampler_function(self) -> Callable[..., Any]:
        """The inner function of core's KSAMPLER, guided: samplers that wrap others call it instead of `sample`.

        Its first argument stands for the guider, which it holds as `inner_model`.
        """
        function = self._sampler.sampler_function

        def guided(model: Any, x: Any, sigmas: Any, *args: Any, **kwargs: Any) -> Any:
            guider = getattr(model, "inner_model", None)
            if not hasattr(guider, "model_options"):
                raise ConductorError(
                    "sampler: the node after Metric Guidance Sampler calls it in a way that cannot be guided. Put "
                    "Metric Guidance Sampler after that node, or use Metric Guidance on the model."
                )
            extra = args[0] if args else kwargs.get("extra_args")
            with self._guiding(guider, sigmas, x, extra, getattr(model, "noise", None)):
                return function(model, x, sigmas, *args, **kwargs)

        return guided

    def max_denoise(self, model_wrap: Any, sigmas: Any) -> Any:
        """As the sampler's own."""
        return self._sampler.max_denoise(model_wrap, sigmas)

    def sample(self, model_wrap: Any, sigmas: Any, extra_args: Any, callback: Any, noise: Any, *args, **kwargs) -> Any:
        """As the sampler's own, guided; model_wrap is the guider that samples."""
        with self._guiding(model_wrap, sigmas, noise, extra_args, noise):
            return self._sampler.sample(model_wrap, sigmas, extra_args, callback, noise, *args, **kwargs)

    @contextmanager
    def _guiding(
        self, guider: Any, sigmas: Any, like: torch.Tensor, extra: Any, noise: torch.Tensor | None
    ) -> Iterator[None]:
        """like: of the shape of the latents. extra: what core hands a sampler's calls. noise: added, if known."""
        model = guider.inner_model
        self._plan.check(model.latent_format)
        options = ((extra or {}).get("model_options") or {}).get("transformer_options") or {}
        added = like if noise is None else noise
        around = options.get("sample_sigmas")
        whole = whole_schedule(sigmas.tolist(), model.model_sampling, self._sampler, added, around)
        with guiding(guider, self._plan, model, model.latent_format, whole, like) as run:
            # With the models of the run, so that none of them makes room for ours.
            loaded = [guider.model_patcher, *getattr(guider, "loaded_models", [])]
            comfy.model_management.load_models_gpu([*loaded, *networks_of(self._plan)], run.memory(tuple(like.shape)))
            run.encode_references()
            yield
