"""What is written to a baked LoRA: the layers of a model or a text encoder, and how their deltas are fused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.lora
import torch
from comfy.sd import CLIP
from torch import Tensor

from ..fusion.adapters import Delta
from ..fusion.baking import Factors, weighted
from ..fusion.geometry import Geometry
from ..fusion.layers import FusedLayer
from ..fusion.segments import ROLES, SegmentDeltas
from .adapters import Unroutable, delta_of
from .base_weights import weight_reader
from .layer_geometry import geometry_of
from .lora_resolving import Entry, Target
from .parents import parents_of

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
    for parent in parents_of(clip.patcher):
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
