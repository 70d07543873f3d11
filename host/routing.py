"""Finding the routing record that belongs to a latent."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..fusion.record import RoutingRecord, empty_record
from .errors import ConductorError
from .fusion_patch import attachment_of


def record_of_latent(model: ModelPatcher, samples: Tensor) -> RoutingRecord:
    """The record of the run in which the model made these samples.

    Runs are told apart by the latent they gave, so two samplers on one model, or a cached one, never mix.

    Raises:
        ConductorError: the model carries no LoRAs of ours, or did not make the latent.
    """
    held = attachment_of(model)
    if held.spec is None:
        raise ConductorError(
            "The model carries no LoRAs of DualLoRADynamicLoader. Connect the model that goes into the sampler."
        )
    if held.live is None:
        return empty_record(held.spec.header)
    record = held.live.record_of(samples)
    if record is None:
        raise ConductorError(
            "This model did not make this latent in its last few runs. Connect the sampler's own latent, before it is "
            "scaled or changed; if the sampler was cached, change its seed and queue again."
        )
    return record
