"""Finding the run that made a latent: its record and its plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from comfy.model_patcher import ModelPatcher

from ...fusion.records import Plan, RoutingRecord, empty_record
from ..core import ConductorError, executing, sources
from .attach import attachment_of
from .kept import KeptRun
from .live import LiveFusion
from .spec import FusionSpec

NO_LORAS = "The model carries no LoRAs of DualLoRADynamicLoader. Connect the model that goes into the sampler."
NO_RUN = (
    "This model did not make this latent in its last few runs. Connect the sampler's own latent, before it is scaled "
    "or changed; if the sampler was cached, change its seed and queue again."
)


@dataclass(frozen=True)
class Origin:
    """Where a node's latent comes from, to find the run when values alone do not tell.

    Attributes:
        prompt: the running workflow in API format.
        node: id of the node that asks.
        input: its input that the latent arrived at.
    """

    prompt: Mapping[str, Any]
    node: str | None
    input: str = "latent"


def live_of(model: ModelPatcher) -> tuple[LiveFusion | None, FusionSpec]:
    """What fuses the model's LoRAs while sampling (None if they are merged before), and what is fused.

    Raises:
        ConductorError: the model carries no LoRAs of ours.
    """
    held = attachment_of(model)
    if held.spec is None:
        raise ConductorError(NO_LORAS)
    return held.live, held.spec


def run_of_latent(live: LiveFusion, samples: Any, origin: Origin | None = None) -> KeptRun:
    """The run that made these samples: by their values, else by the nodes that they come from.

    Raises:
        ConductorError: it is not one of the last few.
    """
    found = live.kept.made(samples)
    if found is None and origin is not None:
        now = executing()
        nodes = list(sources(origin.prompt, origin.node, origin.input))
        found = live.kept.in_nodes(nodes, now.item if now is not None else None)
    if found is None:
        raise ConductorError(NO_RUN)
    return found


def record_of_latent(model: ModelPatcher, samples: Any, origin: Origin | None = None) -> RoutingRecord:
    """The record of the run in which the model made these samples.

    Raises:
        ConductorError: the model carries no LoRAs of ours, or did not make the latent.
    """
    live, spec = live_of(model)
    return empty_record(spec.header) if live is None else run_of_latent(live, samples, origin).record


def record_or_reason(model: ModelPatcher, samples: Any, origin: Origin | None = None) -> tuple[RoutingRecord, str]:
    """As :func:`record_of_latent`; where there is none, an empty record and why: a report costs nobody a picture."""
    spec = attachment_of(model).spec
    header = {"policy": {"policy": "none"}, "loras": (), "refinement": {}} if spec is None else spec.header
    try:
        return record_of_latent(model, samples, origin), ""
    except ConductorError as error:
        return empty_record(header), str(error)


def plan_of_latent(model: ModelPatcher, samples: Any, origin: Origin | None = None) -> Plan:
    """The plan of the run in which the model made these samples.

    Raises:
        ConductorError: the model carries no LoRAs of ours, or did not make the latent, or did so many runs ago.
    """
    live, spec = live_of(model)
    if live is None:
        return Plan(**spec.header, sigmas=(), layers=(), calls=())
    plan = run_of_latent(live, samples, origin).plan
    if plan is None:
        raise ConductorError(NO_RUN)
    return plan
