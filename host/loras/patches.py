"""What a LoRA file does to a model: deltas to be routed, patches that core merges, and the rest by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.lora
import torch
from comfy.model_patcher import ModelPatcher

from ...fusion.adapters import Delta, DeltaError, Geometry, LowRankDelta, NotFiniteError
from ..core import ConductorError, geometry_of, restore_modules
from .deltas import Unroutable, applicable, check_mergeable, delta_of
from .file import LoraFile
from .on_model import LoraOnModel
from .targets import Entry, Target, broken_keys, resolve, slice_shape


@dataclass
class LoraPatches:
    """What a file does to one model. Every key of the file is in exactly one place.

    Attributes:
        file: the file.
        routed: deltas by target, to be fused at run time.
        core_patches: the same, as core's loaders made them.
        merged: patches by target that cannot be routed; core merges them. With the reason.
        refused: entries that were recognised but cannot be applied, with the reason.
        unmatched: keys no weight of the model answers to.
        applied: the file's keys that are routed or merged.
        refused_keys: the file's keys that ``refused`` is about.
        entries: what the file says about each target that is routed or merged.
        broken: keys of entries that would be applied, but hold NaN or infinite values; they are refused too.
    """

    file: LoraFile
    routed: dict[Target, Delta] = field(default_factory=dict)
    core_patches: dict[Target, Any] = field(default_factory=dict)
    merged: dict[Target, tuple[Any, str]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)
    applied: set[str] = field(default_factory=set)
    refused_keys: set[str] = field(default_factory=set)
    entries: dict[Target, Entry] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """Whether there is anything in the file that can be applied to the model."""
        return bool(self.routed or self.merged)

    def refuse(self, target: Target, reason: str) -> None:
        """Leave out what would be routed to a target."""
        del self.routed[target], self.core_patches[target]
        self.refused[str(target)] = reason
        keys = self.entries.pop(target).keys
        self.applied -= keys
        self.refused_keys |= keys

    def check_finite(self) -> None:
        """Whether what would be applied is made of numbers.

        Raises:
            ConductorError: it is not: the keys that hold others are named.
        """
        if self.broken:
            raise ConductorError(
                f"LoRA '{self.file.name}' holds NaN or infinite values in {len(self.broken)} of "
                f"{len(self.file.tensors)} tensors (first: {self.broken[0]}). The file is damaged or its training "
                "diverged: use another checkpoint of it."
            )

    def on_model(self, role: str, strength: float, behind: Mapping[str, int]) -> LoraOnModel:
        """What has to be remembered of the file once it is on the model, behind so many patches of others by weight."""
        return LoraOnModel(
            self.file.name,
            self.file.path,
            self.file.digest,
            role,
            strength,
            self.routed,
            self.core_patches,
            {target: entry.prefix for target, entry in self.entries.items() if target in self.routed},
            {target: entry for target, entry in self.entries.items() if target in self.merged},
            len(self.refused) + len(self.unmatched),
            behind,
        )


def model_patches(file: LoraFile, model: ModelPatcher) -> LoraPatches:
    """Resolve a file against a diffusion model: what can be routed, what core has to merge, and the rest by name."""
    restore_modules(model)
    resolution = resolve(file, comfy.lora.model_lora_keys_unet(model.model, {}))
    result = LoraPatches(
        file, refused=resolution.refused, unmatched=resolution.unmatched, refused_keys=resolution.refused_keys
    )
    weights = model.model.state_dict()
    for target, entry in resolution.entries.items():
        if target.key not in weights:
            result.refused[str(target)] = "the model has no such weight"
            result.refused_keys |= entry.keys
            continue
        try:
            delta = _delta(target, entry.patch, model.model, tuple(weights[target.key].shape))
            patch = applicable(entry.patch)
        except DeltaError as error:
            result.refused[str(target)] = str(error)
            result.refused_keys |= entry.keys
            if isinstance(error, NotFiniteError):
                result.broken += broken_keys(file, entry)
            continue
        result.applied |= entry.keys
        result.entries[target] = replace(entry, patch=patch)
        if isinstance(delta, str):
            result.merged[target] = (patch, delta)
        else:
            if isinstance(delta, LowRankDelta):
                delta = replace(delta, origin=(file.digest, entry.prefix, str(target)))
            result.routed[target], result.core_patches[target] = delta, patch
    return result


def _delta(target: Target, patch: Any, model: torch.nn.Module, shape: tuple[int, ...]) -> Delta | str:
    """The patch as a delta, or why it has to be merged; ``shape`` is that of the stored weight."""
    geometry = geometry_of(model, target.key)
    reason = geometry if isinstance(geometry, str) else "its rows are reordered for this model"
    if isinstance(geometry, Geometry):
        shape = geometry.weight_shape
        if target.function is None:
            try:
                return delta_of(patch, geometry, target.offset)
            except Unroutable as why:
                reason = str(why)
    check_mergeable(patch, slice_shape(shape, target))
    return reason
