"""Finding the run that made a latent: its record and its plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy.model_patcher import ModelPatcher

from ...fusion.records import Plan, RoutingRecord, empty_record
from ..core import ConductorError, Origin
from .attach import attachment_of
from .live import LiveFusion, RunResults
from .spec import FusionSpec
from .unrouted import why_nothing

NO_LORAS = "The model carries no LoRAs of DualLoRADynamicLoader. Connect the model that goes into the sampler."
NO_RUN = (
    "This model did not make this latent in its last few runs. Connect the sampler's own latent, before it is scaled "
    "or changed; if the sampler was cached, change its seed and queue again."
)


def live_of(model: ModelPatcher) -> tuple[LiveFusion | None, FusionSpec]:
    """What fuses the model's LoRAs while sampling (None if they are merged before), and what is fused.

    Raises:
        ConductorError: the model carries no LoRAs of ours.
    """
    held = attachment_of(model)
    if held.spec is None:
        raise ConductorError(NO_LORAS)
    return held.live, held.spec


def _run_of(live: LiveFusion, samples: Any, origin: Origin | None) -> RunResults:
    found = live.kept.find(samples, origin)
    if found is None:
        raise ConductorError(NO_RUN)
    return found


def record_of_latent(model: ModelPatcher, samples: Any, origin: Origin | None = None) -> RoutingRecord:
    """The record of the run in which the model made these samples.

    Raises:
        ConductorError: the model carries no LoRAs of ours, or did not make the latent.
    """
    live, spec = live_of(model)
    return empty_record(spec.header) if live is None else _run_of(live, samples, origin).record


def record_or_reason(model: ModelPatcher, samples: Any, origin: Origin | None = None) -> tuple[RoutingRecord, str, str]:
    """As :func:`record_of_latent`; where there is none, an empty record and why: a report costs nobody a picture.

    Returns:
        The record, the reason in words ("" if there is a record), and why there is no map as the page knows it (""
        if there is one).
    """
    held = attachment_of(model)
    spec = held.spec
    header = {"policy": {"policy": "none"}, "loras": (), "refinement": {}} if spec is None else spec.header
    try:
        record = record_of_latent(model, samples, origin)
    except ConductorError as error:
        return empty_record(header), str(error), "no_loras" if spec is None else "no_run"
    return record, "", "" if record.layers else why_nothing(spec, is_merged=held.live is None)


def distance_of_latent(
    model: ModelPatcher,
    samples: Any,
    weights: Mapping[str, tuple[float, float]],
    origin: Origin | None = None,
    push: float = 1.0,
) -> tuple[int, float] | None:
    """How far weights that stay as they are take the model from the run in which it made these samples.

    Args:
        model: that sampled.
        samples: the latent.
        weights: (subject, style) by segment.
        origin: of the latent.
        push: how many times these, and what layers of one LoRA get.

    Returns:
        A step of the run, and the distance of the picture that the model predicts there, root mean square over its
        range; None where no call of the run was kept.
    """
    live, _ = live_of(model)
    found = None if live is None else live.kept.find(samples, origin)
    if live is None or found is None or found.call is None:
        return None
    return found.call.step, live.distance(model, found.call, weights, push)


def plan_of_latent(model: ModelPatcher, samples: Any, origin: Origin | None = None) -> Plan:
    """The plan of the run in which the model made these samples.

    Raises:
        ConductorError: the model carries no LoRAs of ours, or did not make the latent, or did so many runs ago.
    """
    live, spec = live_of(model)
    if live is None:
        return Plan(**spec.header, sigmas=(), layers=(), calls=())
    plan = _run_of(live, samples, origin).plan
    if plan is None:
        raise ConductorError(NO_RUN)
    return plan
