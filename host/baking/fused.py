"""What is written to a baked LoRA: the layers of a model or a text encoder, and how their deltas are fused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.lora
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from torch import Tensor

from ...fusion.adapters import Delta, Geometry
from ...fusion.baking import BakedWeights, Factors, baked_weights, weighted
from ...fusion.layers import FusedLayer, SegmentDeltas
from ...fusion.policies import StaticPolicy
from ...fusion.records import RoutingRecord
from ...fusion.roles import ROLES
from ..core import ConductorError, geometry_of, weight_reader
from ..fusing import FusionSpec, attachment_of, left_on
from ..loras import Entry, Target, Unroutable, delta_of, loras_on

# A segment's fused delta from those of its roles; None where nobody knows its weights.
Fuse = Callable[[SegmentDeltas], "Factors | Tensor | None"]


@dataclass(frozen=True)
class Source:
    """One of the models a LoRA file is for.

    Attributes:
        layers: the deltas on it, joined by weight.
        fuse: how they become one.
        prefixes: the files' own key prefixes of their targets.
        merged: strength and entry of what core merges.
        key_map: core's map of key prefixes to weights.
    """

    layers: list[FusedLayer]
    fuse: Fuse
    prefixes: dict[Target, str]
    merged: list[tuple[float, Entry]]
    key_map: dict[str, Any]


def summed(deltas: SegmentDeltas) -> Factors:
    """Everything at its own strength."""
    return weighted(deltas, dict.fromkeys(ROLES, 1.0))


def text_source(clip: CLIP) -> Source:
    """The text-encoder parts of the LoRAs on a CLIP, which core merges as they are."""
    module = clip.cond_stage_model
    source = Source([], summed, {}, [], comfy.lora.model_lora_keys_clip(module, {}))
    deltas: dict[str, list[tuple[str, float, Delta]]] = {}
    for parent in loras_on(clip.patcher):
        for target, entry in parent.merged.items():
            delta = _delta(module, entry)
            if delta is None:
                source.merged.append((parent.strength, entry))
                continue
            source.prefixes.setdefault(target, entry.prefix)
            deltas.setdefault(target.key, []).append((parent.role, parent.strength, delta))
    for key, own in deltas.items():
        geometry = geometry_of(module, key)
        assert isinstance(geometry, Geometry)
        reader = weight_reader(clip.patcher, key)
        source.layers.append(FusedLayer(key.removesuffix(".weight"), geometry, own, torch.float32, reader))
    return source


def _delta(module: torch.nn.Module, entry: Entry) -> Delta | None:
    geometry = geometry_of(module, entry.target.key)
    if not isinstance(geometry, Geometry) or entry.target.function is not None:
        return None
    try:
        return delta_of(entry.patch, geometry, entry.target.offset)
    except Unroutable:
        return None


def model_source(model: ModelPatcher, record: RoutingRecord | None, step: int | None) -> Source:
    """The diffusion-model parts of the LoRAs on a model, fused as a run's record says at a step, or on average.

    Raises:
        ConductorError: the run has no such step.
    """
    spec, parents = attachment_of(model).spec, loras_on(model)
    return Source(
        spec.layers if spec is not None else [],
        _fusion_of(spec, record, step, model) if spec is not None else summed,
        {target: prefix for parent in reversed(parents) for target, prefix in parent.prefixes.items()},
        [(parent.strength, entry) for parent in parents for entry in parent.merged.values()],
        comfy.lora.model_lora_keys_unet(model.model, {}),
    )


def _fusion_of(spec: FusionSpec, record: RoutingRecord | None, step: int | None, model: ModelPatcher) -> Fuse:
    policy = spec.policy
    if record is not None:
        try:
            weights = baked_weights(policy, record, step)
        except ValueError as error:
            raise ConductorError(f"step: {error}. Choose another step, or set steps to 'average'.") from error
        left = left_on(model)
        stacked = {segment.name for layer in spec.layers if layer.name in left for segment in layer.segments}
        return lambda deltas: summed(deltas) if deltas.name in stacked else _routed(deltas, weights)
    if isinstance(policy, StaticPolicy) and not policy.is_sum:
        device = _device(model)
        return lambda deltas: _merged(deltas, policy, device)
    return summed


def _routed(deltas: SegmentDeltas, weights: BakedWeights) -> Factors | None:
    if set(deltas.up) != set(ROLES):
        return weighted(deltas, weights.alone)
    own = weights.shared.get(deltas.name)
    return None if own is None else weighted(deltas, own)


def _merged(deltas: SegmentDeltas, policy: StaticPolicy, device: torch.device) -> Factors | Tensor:
    if not policy.exact_factors:
        up, down = ({role: t.to(device) for role, t in factors.items()} for factors in (deltas.up, deltas.down))
        deltas = SegmentDeltas(deltas.name, down, up)
    return policy.merge(deltas) if set(deltas.up) == set(ROLES) else summed(deltas)


def _device(model: ModelPatcher) -> torch.device:
    """Where dense merges are computed: other accelerators lack the decompositions they need."""
    return model.load_device if model.load_device.type == "cuda" else torch.device("cpu")
