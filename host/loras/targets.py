"""A LoRA file against a model's key map: which entry is for which weight, or slice of one.

Core's own key maps and adapter loaders decide what a key means, so every dialect core reads is read here, and two
dialects of the same layer meet on the same target. What they take, and what they leave, is written down.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import comfy.lora
import comfy.lora_convert
import comfy.weight_adapter
from torch import Tensor

from ...fusion.adapters import DeltaError, NotFiniteError
from .deltas import check_mergeable, unused_tensors
from .file import LoraFile

# How trainers begin the keys of text encoders, whichever model they belong to.
TEXT = re.compile(r"(lora_|lycoris_|lora_prior_)?(te\d*|text_encoders?(_\d)?|text_model|clip_[lgh]|t5\w*)[._]")


class Target(NamedTuple):
    """Where a patch goes: the weight's key in the model and, for fused weights, ``(dim, start, length)`` of a slice."""

    key: str
    offset: tuple[int, int, int] | None = None
    function: Callable[[Tensor], Tensor] | None = None

    @property
    def core_key(self) -> str | tuple:
        """The form ``ModelPatcher.add_patches`` takes."""
        if self.function is not None:
            return (self.key, self.offset, self.function)
        return self.key if self.offset is None else (self.key, self.offset)

    def __str__(self) -> str:
        if self.offset is None:
            return self.key
        dim, start, length = self.offset
        return f"{self.key}[{'' if dim == 0 else ':, '}{start}:{start + length}]"


class _Watched(dict):
    """A file's tensors that remember which keys core's loaders took."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__(tensors)
        self.taken: set[str] = set()

    def __getitem__(self, key: str) -> Tensor:
        value = super().__getitem__(key)
        self.taken.add(key)
        return value

    def get(self, key: str, default: Any = None) -> Any:
        if key in self:
            self.taken.add(key)
        return super().get(key, default)


@dataclass(frozen=True)
class Entry:
    """One thing a file says about one weight: the patch core makes of it and the file's keys that went into it."""

    prefix: str
    target: Target
    patch: Any
    keys: frozenset[str]


@dataclass
class Resolution:
    """A file against a key map.

    Attributes:
        entries: by target; where a file names a weight twice, the one that core would apply.
        refused: prefixes or keys that core cannot load or passes over, with the reason.
        unmatched: keys nothing answers to.
        refused_keys: the keys that ``refused`` is about.
        broken: keys of entries that would be applied, but hold NaN or infinite values.
    """

    entries: dict[Target, Entry] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)
    refused_keys: set[str] = field(default_factory=set)
    broken: list[str] = field(default_factory=list)


def resolve(file: LoraFile, key_map: dict[str, Any]) -> Resolution:
    """What core's loaders make of a file.

    Args:
        file: the file.
        key_map: core's map of LoRA key prefixes to weights (``comfy.lora.model_lora_keys_unet`` / ``..._clip``).
    """
    tensors = _Watched(comfy.lora_convert.convert_lora(dict(file.tensors)))
    result = Resolution()
    claimed: set[str] = set()
    for prefix, target_key in _relevant(tensors, key_map):
        tensors.taken = set()
        try:
            patches = comfy.lora.load_lora(tensors, {prefix: target_key}, log_missing=False)
        except (KeyError, RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            result.refused[prefix] = _malformed(error)
            result.refused_keys |= tensors.taken
            claimed |= tensors.taken
            continue
        claimed |= tensors.taken
        left = set(tensors.taken)
        for raw, patch in patches.items():
            own = {id(t) for t in _tensors(patch)} - {id(t) for t in unused_tensors(patch)}
            is_adapter = isinstance(patch, comfy.weight_adapter.WeightAdapterBase)
            keys = {
                key
                for key in tensors.taken
                if id(dict.__getitem__(tensors, key)) in own or (is_adapter and _is_number(key))
            }
            left -= keys
            faults = [f"{key}: {file.unusable[key]}" for key in sorted(keys & file.unusable.keys())]
            if faults:
                result.refused[prefix] = "; ".join(faults)
                result.refused_keys |= keys
                continue
            entry = Entry(prefix, _target(raw), patch, frozenset(keys))
            earlier = result.entries.get(entry.target)
            if earlier is not None and earlier.keys != entry.keys:
                result.refused[earlier.prefix] = f"the file's {prefix} is for the same weight and is applied instead"
                result.refused_keys |= earlier.keys
            result.entries[entry.target] = entry
        result.refused_keys |= left
        for key in left:
            result.refused[key] = (
                "other entries of the file for the same weight are applied instead"
                if patches
                else "the file has nothing that it belongs to"
            )
    result.unmatched = sorted(set(tensors) - claimed)
    # Those that core's loaders would never have asked for.
    result.refused |= {key: why for key, why in file.unusable.items() if key not in tensors}
    return result


def _malformed(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"the file lacks {error.args[0]}"
    return "its tensors do not belong together"


def refuse_unfit(file: LoraFile, resolution: Resolution, weights: dict[str, Tensor]) -> None:
    """Move entries that core could only fail to merge from ``entries`` to ``refused``.

    Args:
        file: that was resolved.
        resolution: changed in place.
        weights: the model's, by key.
    """
    for target, entry in list(resolution.entries.items()):
        try:
            if target.key not in weights:
                raise DeltaError("the model has no such weight")
            check_mergeable(entry.patch, slice_shape(tuple(weights[target.key].shape), target))
        except DeltaError as error:
            resolution.refused[str(target)] = str(error)
            resolution.refused_keys |= entry.keys
            if isinstance(error, NotFiniteError):
                resolution.broken += broken_keys(file, entry)
            del resolution.entries[target]


def broken_keys(file: LoraFile, entry: Entry) -> list[str]:
    """Which keys of an entry hold NaN or infinite values; those it has, where converting made them of others."""
    return file.not_finite(sorted(entry.keys)) or [entry.prefix]


def slice_shape(shape: tuple[int, ...], target: Target) -> tuple[int, ...]:
    if target.offset is None or target.offset[0] >= len(shape):
        return shape
    dim, _, length = target.offset
    return (*shape[:dim], length, *shape[dim + 1 :])


def is_for_text(key: str) -> bool:
    """Whether a file's key says that it is for a text encoder."""
    return TEXT.match(key) is not None


def _is_number(key: str) -> bool:
    """Keys that core reads as numbers, so that their tensors are not found in a patch again."""
    return key.endswith((".alpha", ".reshape_weight"))


def _relevant(tensors: dict[str, Tensor], key_map: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The entries of the key map that can match: a large model has thousands, a file names some hundreds."""
    heads: set[str] = set()
    for key in tensors:
        parts = key.split(".")
        own = [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
        heads.update(own)
        # diffusers' old form writes `<prefix>_lora.up.weight`.
        heads.update(head.removesuffix("_lora") for head in own)
    return ((prefix, target) for prefix, target in key_map.items() if prefix in heads)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, comfy.weight_adapter.WeightAdapterBase):
        yield from _tensors(value.weights)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _target(raw: Any) -> Target:
    return Target(raw) if isinstance(raw, str) else Target(*raw)
