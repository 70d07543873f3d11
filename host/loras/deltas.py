"""Patches as core loaded them, as deltas that can be routed at run time; or the reason why core has to merge them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor

from ...fusion.adapters import (
    Delta,
    DeltaError,
    DoRADelta,
    Geometry,
    LowRankDelta,
    Place,
    densified,
    finite,
    fits,
    weight_difference,
)
from .kinds import Kind, Unroutable, kind_of


def delta_of(patch: Any, geometry: Geometry, offset: tuple[int, int, int] | None) -> Delta:
    """The delta that a patch is to a layer's weight, or to a slice ``(dim, start, length)`` of it.

    Raises:
        DeltaError: nobody can apply it: the message says what is wrong.
        Unroutable: core can.
    """
    place = _place(geometry, offset)
    if isinstance(patch, WeightAdapterBase):
        return _of_adapter(patch, place, geometry)
    return _of_tuple(patch, place, geometry)


def check_mergeable(patch: Any, shape: tuple[int, ...]) -> None:
    """Whether core can merge a patch into a weight, or a slice, of that shape: it only logs what it cannot.

    Raises:
        DeltaError: it cannot.
    """
    place = Place(shape)
    if isinstance(patch, WeightAdapterBase):
        _check_adapter(patch, place)
    elif patch[0] == "diff" and len(patch[1]) == 1:
        weight_difference(place, patch[1][0])
    elif patch[0] == "set":
        fits(tuple(patch[1][0].shape) == shape, "a replacement", shape, patch[1][0])
        finite(set_weight=patch[1][0])


def applicable(patch: Any) -> Any:
    """The patch in a form that core can apply on every version of torch."""
    kind = kind_of(patch)
    if kind is None:
        return patch
    weights = kind.applicable(patch.weights)
    return patch if weights is patch.weights else type(patch)(patch.loaded_keys, weights)


def unused_tensors(patch: Any) -> Iterator[Tensor]:
    """What a file holds for an adapter and core loads, but does not apply."""
    kind = kind_of(patch)
    unused = () if kind is None else kind.unused(patch.weights)
    return (tensor for tensor in unused if tensor is not None)


def _place(geometry: Geometry, offset: tuple[int, int, int] | None) -> Place:
    shape, starts = list(geometry.weight_shape), [0, 0]
    if offset is not None:
        dim, start, length = offset
        if dim > 1 or start + length > shape[dim]:
            raise DeltaError(f"the slice {offset} does not fit the weight {tuple(shape)}")
        shape[dim], starts[dim] = length, start
    return Place(tuple(shape), *starts)


def _of_adapter(adapter: Any, place: Place, geometry: Geometry) -> Delta:
    _check_tensors(adapter)
    kind = kind_of(adapter)
    if kind is None:
        raise Unroutable(f"adapters of the kind '{adapter.name}' are not known here")
    delta = kind.delta(place, adapter.weights)
    if isinstance(delta, LowRankDelta):
        delta.check_size()
    grouped = geometry.groups != 1
    if grouped:
        _refuse_grouped_slice(place, geometry)
        if not kind.grouped:
            raise Unroutable(f"{adapter.name} on a grouped convolution is not routed")
        delta = densified(delta, place)
    magnitude = adapter.weights[kind.magnitude]
    if magnitude is not None:
        delta = _dora(_as_in_dora(delta, kind, adapter), magnitude, place, grouped)
    partial = place.shape[1] != geometry.weight_shape[1]
    if partial and (magnitude is not None or not kind.partial):
        raise Unroutable("it depends on a part of the weight's input channels")
    return delta


def _check_adapter(adapter: Any, place: Place) -> None:
    _check_tensors(adapter)
    kind = kind_of(adapter)
    magnitude = None if kind is None else adapter.weights[kind.magnitude]
    if len(place.shape) < 2 and (kind is None or not kind.vectors or magnitude is not None):
        raise DeltaError(f"there is no {adapter.name} for a weight of shape {place.shape}")
    if kind is None:
        finite(**{f"factor {number}": value for number, value in enumerate(adapter.weights) if _is_tensor(value)})
        return
    try:
        delta = kind.delta(place, adapter.weights)
        if magnitude is not None:
            _dora(delta, magnitude, place, False)
    except Unroutable:
        return


def _of_tuple(patch: Any, place: Place, geometry: Geometry) -> Delta:
    kind, values = (patch[0], patch[1]) if len(patch) == 2 else ("diff", patch)
    if kind != "diff":
        raise Unroutable(f"a '{kind}' patch replaces the weight")
    if len(values) > 1:
        raise Unroutable("it changes the weight's shape")
    if geometry.groups != 1:
        _refuse_grouped_slice(place, geometry)
    return weight_difference(place, values[0])


def _refuse_grouped_slice(place: Place, geometry: Geometry) -> None:
    if place.shape != geometry.weight_shape:
        raise Unroutable("it is for a slice of a grouped convolution")


def _check_tensors(adapter: Any) -> None:
    for value in adapter.weights:
        if isinstance(value, Tensor) and not value.is_floating_point():
            raise DeltaError(f"a factor has the dtype {value.dtype}, not a floating point one")
        if isinstance(value, Tensor) and value.ndim == 0:
            raise DeltaError("a factor is a single number")


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _as_in_dora(delta: Any, kind: Kind, adapter: Any) -> Delta:
    """The delta at the scale it has inside core's DoRA."""
    if kind.dora_scale is None:
        return delta
    scale = float(adapter.weights[kind.dora_scale] or 0.0)
    if not math.isfinite(scale):
        raise DeltaError(f"alpha {scale} is not a finite number")
    return replace(delta, scale=scale)


def _dora(delta: Delta, magnitude: Tensor, place: Place, grouped: bool) -> DoRADelta:
    finite(dora_scale=magnitude)
    shape, ones = tuple(magnitude.shape), [1] * (len(place.shape) - 1)
    on_output = shape == (place.shape[0], *ones)
    # Core decides by the first dimension alone: with one output channel it takes any magnitudes for the outputs'.
    if not on_output and (shape != (1, *place.shape[1:2], *ones[1:]) or place.shape[0] == 1):
        given = f"DoRA magnitudes of shape {shape} for a weight of shape {place.shape}"
        try:
            # As core broadcasts them.
            fine = bool(shape) and torch.broadcast_shapes(shape, place.shape) == place.shape
        except RuntimeError:
            fine = False
        raise Unroutable(f"{given} are not routed") if fine else DeltaError(f"{given} do not fit")
    if not on_output and grouped:
        raise Unroutable("DoRA over the inputs of a grouped convolution is not routed")
    return DoRADelta(delta, magnitude.flatten(), on_output)
