"""Decisions as ordinary weight patches, in the middle of a run: the rest of it runs at core's own speed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor

from ...fusion.layers import FusedLayer, Segment
from ...fusion.roles import ROLES
from .guiders import patchers_of
from .order import own_patch
from .spec import FusionSpec
from .static import low_rank_patch

Weights = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Frozen:
    """Decisions that hold for the rest of a run, since which step.

    Attributes:
        models: clones of the run's models, one a device, that carry the LoRAs so weighted as weight patches, loaded.
            None where the LoRAs are added while sampling as before, because passes differ in them.
        step: the first that they are for.
        weights: by segment, of subject and style.
    """

    models: tuple[ModelPatcher, ...]
    step: int
    weights: Weights

    def thaw(self, models: Iterable[ModelPatcher]) -> None:
        """Load the run's own patchers again: their weights are as they were."""
        comfy.model_management.load_models_gpu(list(models))


def freeze(
    guider: Any,
    spec: FusionSpec,
    weights: Weights,
    step: int,
    shape: torch.Size,
    left: Collection[str] = (),
    push: float = 1.0,
) -> Frozen:
    """Load clones of a run's models with every layer's LoRAs merged at the given weights.

    Core switches from one clone to another as it does between two runs; no call may be under way.

    Args:
        guider: of the run; its other models (ControlNets) stay loaded.
        spec: what is fused.
        weights: by segment, of subject and style; segments that were not decided are added whole.
        step: the first they are for.
        shape: of the latents in a model call, for core to keep memory free for.
        left: layers whose LoRAs are weight patches already.
        push: how many times these weights the run's guidance asks for.
    """
    patches = [(these, strength * push) for these, strength in frozen_patches(spec, weights, left)]
    clones = [patcher.clone() for patcher in patchers_of(guider)]
    for clone in clones:
        for these, strength in patches:
            clone.add_patches(these, strength)
    memory = clones[0].model.memory_required(list(shape))
    beside = [model for model in guider.loaded_models if not any(model.is_clone(clone) for clone in clones)]
    comfy.model_management.load_models_gpu([*clones, *beside], memory_required=memory, minimum_memory_required=memory)
    return Frozen(tuple(clones), step, weights)


def frozen_patches(
    spec: FusionSpec, weights: Weights, left: Collection[str] = ()
) -> list[tuple[dict[Any, Any], float]]:
    """Core patches with their strengths: each LoRA's own where its target is one segment, factors where it is cut."""
    found: list[tuple[dict[Any, Any], float]] = []
    cut: dict[Any, Any] = {}
    whole: set[str] = set()
    layers = [layer for layer in spec.layers if layer.name not in left]
    for layer in layers:
        if layer.down is not None and not layer.bypasses:
            cut |= {_target(layer, segment): _low_rank(layer, segment, weights) for segment in layer.segments}
            whole.add(f"{layer.name}.weight")
    found.append((cut, 1.0))
    by_key = {f"{layer.name}.weight": layer for layer in layers}
    for lora in spec.loras:
        for target, patch in lora.core_patches.items():
            if target.key in by_key and target.key not in whole:
                gains = _gains(by_key[target.key], target, weights, ROLES.index(lora.role))
                same = len({gain for _, gain in gains}) == 1
                placed = own_patch(patch) if same else by_rows(own_patch(patch), gains)
                found.append(({target.core_key: placed}, lora.strength * (gains[0][1] if same else 1.0)))
    return [(patches, strength) for patches, strength in found if patches and strength]


def _low_rank(layer: FusedLayer, segment: Segment, weights: Weights) -> Any:
    deltas = layer.segment_deltas(segment)
    gains = dict(zip(ROLES, weights.get(segment.name, (1.0, 1.0)), strict=True))
    up = torch.cat([deltas.up[role] * gains[role] for role in segment.roles], dim=1)
    return low_rank_patch(up, torch.cat([deltas.down[role] for role in segment.roles]))


def _target(layer: FusedLayer, segment: Segment) -> Any:
    key = f"{layer.name}.weight"
    if segment.name == layer.name:
        return key
    return (key, (0, segment.start, segment.stop - segment.start))


def _gains(layer: FusedLayer, target: Any, weights: Weights, role: int) -> list[tuple[int, float]]:
    """Weights for a patch that is no plain LoRA: of each segment that it covers, with the number of its channels."""
    start, length = target.offset[1:] if target.offset and target.offset[0] == 0 else (0, layer.geometry.out_features)
    covered = [s for s in layer.segments if start <= s.start and s.stop <= start + length]
    return [(s.stop - s.start, weights.get(s.name, (1.0, 1.0))[role]) for s in covered]


class ByRows(WeightAdapterBase):
    """A patch of core's with a weight of its own for every row of the layer; ``weights`` is ``(patch, gains)``."""

    name = "lora_conductor_by_rows"

    def __init__(self, loaded_keys: set[str], weights: tuple[Any, Tensor]) -> None:
        self.loaded_keys = loaded_keys
        self.weights = weights

    def calculate_weight(self, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Add what the patch adds, row by row (core's interface)."""
        patch, gains = self.weights
        before = weight.clone()
        change = patch.calculate_weight(weight, *args, **kwargs) - before
        return before + change * gains.to(change).reshape(-1, *[1] * (change.ndim - 1))


def by_rows(patch: Any, gains: Sequence[tuple[int, float]]) -> Any:
    """The patch with such a weight for each run of rows."""
    each = torch.cat([torch.full((rows,), gain) for rows, gain in gains])
    if isinstance(patch, tuple):
        kind, (change, *others) = patch
        return kind, (change * each.to(change).reshape(-1, *[1] * (change.ndim - 1)), *others)
    return ByRows(patch.loaded_keys, (patch, each))
