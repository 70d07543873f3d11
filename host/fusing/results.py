"""Finding the routing record that belongs to a latent."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...fusion.records import RoutingRecord, empty_record
from ..core import ConductorError
from .attach import attachment_of
from .live import LiveFusion
from .spec import FusionSpec


def live_of(model: ModelPatcher) -> tuple[LiveFusion | None, FusionSpec]:
    """What fuses the model's LoRAs while sampling (None if they are merged before), and what is fused.

    Raises:
        ConductorError: the model carries no LoRAs of ours.
    """
    held = attachment_of(model)
    if held.spec is None:
        raise ConductorError(
            "The model carries no LoRAs of DualLoRADynamicLoader. Connect the model that goes into the sampler."
        )
    return held.live, held.spec


def record_of_latent(model: ModelPatcher, samples: Tensor) -> RoutingRecord:
    """The record of the run in which the model made these samples.

    Runs are told apart by the latent they gave, so two samplers on one model, or a cached one, never mix.

    Raises:
        ConductorError: the model carries no LoRAs of ours, or did not make the latent.
    """
    live, spec = live_of(model)
    return empty_record(spec.header) if live is None else live.results_of(samples)[0]
