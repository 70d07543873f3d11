"""LoRA files to deltas, keyed by the weight (and slice) they are for.

Core's own key maps and adapter loaders decide what a key means, so every dialect core reads is read here, and two
dialects of the same layer meet on the same target. What they take, and what they leave, is written down.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import comfy.lora
import comfy.lora_convert
import comfy.utils
import comfy.weight_adapter
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..fusion.adapters import Delta
from ..fusion.deltas import DeltaError
from ..fusion.geometry import Geometry
from .adapters import Unroutable, applicable, check_mergeable, delta_of, unused_tensors
from .errors import ConductorError


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


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file's tensors, as read.

    Attributes:
        name: as the user chose it.
        path: where it lies.
        digest: hash of the file's content.
        tensors: by the file's own keys, on the CPU.
    """

    name: str
    path: str
    digest: str
    tensors: dict[str, Tensor] = field(repr=False)


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
    """

    file: LoraFile
    routed: dict[Target, Delta] = field(default_factory=dict)
    core_patches: dict[Target, Any] = field(default_factory=dict)
    merged: dict[Target, tuple[Any, str]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)
    applied: set[str] = field(default_factory=set)
    refused_keys: set[str] = field(default_factory=set)


def read_lora(name: str, path: str) -> LoraFile:
    """Read a LoRA file; the last few files are kept, by path, modification time and size.

    Raises:
        ConductorError: the file is missing, truncated, no LoRA file or unreadable.
    """
    try:
        stat = os.stat(path)
    except OSError as error:
        raise ConductorError(
            f"LoRA '{name}' cannot be opened: {error}. Pick another file or restore this one."
        ) from error
    return _read_cached(name, path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4)
def _read_cached(name: str, path: str, mtime_ns: int, size: int) -> LoraFile:
    if size == 0:
        raise ConductorError(f"LoRA '{name}' is an empty file. Download it again.")
    try:
        tensors = comfy.utils.load_torch_file(path, safe_load=True)
    except Exception as error:
        raise ConductorError(
            f"LoRA '{name}' cannot be read ({error}). The file is damaged, cut off or not a LoRA: download it again."
        ) from error
    tensors = {key: value for key, value in tensors.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ConductorError(f"LoRA '{name}' holds no tensors. Is it a LoRA file?")
    broken = [key for key, value in tensors.items() if not _finite(value)]
    if broken:
        raise ConductorError(
            f"LoRA '{name}' holds NaN or infinite values in {len(broken)} of {len(tensors)} tensors (first: "
            f"{broken[0]}). The file is damaged or its training diverged: use another checkpoint of it."
        )
    with open(path, "rb") as file:
        digest = _digest(file)
    return LoraFile(name, path, digest, tensors)


def _finite(value: Tensor) -> bool:
    if not value.is_floating_point():
        return True
    # float8 has no isfinite of its own.
    return bool(torch.isfinite(value if value.element_size() > 1 else value.float()).all())


def _digest(file: Any) -> str:
    value = hashlib.sha256()
    for chunk in iter(lambda: file.read(1 << 20), b""):
        value.update(chunk)
    return value.hexdigest()


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
    """

    entries: dict[Target, Entry] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)
    refused_keys: set[str] = field(default_factory=set)


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
            result.refused[prefix] = f"it is incomplete or malformed ({type(error).__name__}: {error})"
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
    return result


def refuse_unfit(resolution: Resolution, weights: dict[str, Tensor]) -> None:
    """Move entries that core could only fail to merge from ``entries`` to ``refused``.

    Args:
        resolution: changed in place.
        weights: the model's, by key.
    """
    for target, entry in list(resolution.entries.items()):
        try:
            if target.key not in weights:
                raise DeltaError("the model has no such weight")
            check_mergeable(entry.patch, _slice_shape(tuple(weights[target.key].shape), target))
        except DeltaError as error:
            resolution.refused[str(target)] = str(error)
            resolution.refused_keys |= entry.keys
            del resolution.entries[target]


def _slice_shape(shape: tuple[int, ...], target: Target) -> tuple[int, ...]:
    if target.offset is None or target.offset[0] >= len(shape):
        return shape
    dim, _, length = target.offset
    return (*shape[:dim], length, *shape[dim + 1 :])


def _is_number(key: str) -> bool:
    """Keys that core reads as numbers, so that their tensors are not found in a patch again."""
    return key.endswith((".alpha", ".reshape_weight"))


def _relevant(tensors: dict[str, Tensor], key_map: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The entries of the key map that can match: a large model has thousands, a file names some hundreds."""
    heads: set[str] = set()
    for key in tensors:
        parts = key.split(".")
        heads.update(".".join(parts[:n]) for n in range(1, len(parts) + 1))
        # diffusers' old form writes `<prefix>_lora.up.weight`.
        heads.update(head[: -len("_lora")] for head in list(heads) if head.endswith("_lora"))
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


def geometry_of(model: torch.nn.Module, key: str) -> Geometry | str:
    """The geometry of the layer that a weight key belongs to, or why its output cannot be routed.

    Layers are known by their attributes, not their class: quantised and packed layers (GGUF, fp8, int8) have the
    attributes of the layer they stand for.
    """
    name, _, leaf = key.rpartition(".")
    if leaf != "weight":
        return f"a {leaf} is no projection"
    try:
        module = comfy.utils.get_attr(model, name)
    except AttributeError:
        return "the model has no such layer"
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return Geometry(module.in_features, module.out_features)
    if hasattr(module, "kernel_size") and hasattr(module, "in_channels") and not getattr(module, "transposed", False):
        return Geometry(
            module.in_channels,
            module.out_channels,
            tuple(module.kernel_size),
            tuple(module.stride),
            module.padding if isinstance(module.padding, str) else tuple(module.padding),
            tuple(module.dilation),
            module.padding_mode,
            module.groups,
        )
    return f"{type(module).__name__} is no projection"


def model_patches(file: LoraFile, model: ModelPatcher) -> LoraPatches:
    """Resolve a file against a diffusion model: what can be routed, what core has to merge, and the rest by name."""
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
        except DeltaError as error:
            result.refused[str(target)] = str(error)
            result.refused_keys |= entry.keys
            continue
        result.applied |= entry.keys
        if isinstance(delta, str):
            result.merged[target] = (applicable(entry.patch), delta)
        else:
            result.routed[target], result.core_patches[target] = delta, applicable(entry.patch)
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
    check_mergeable(patch, _slice_shape(shape, target))
    return reason
