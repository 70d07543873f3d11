"""Patches as core loaded them, as deltas that can be routed at run time; or the reason why core has to merge them."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import comfy.weight_adapter as core
import torch
from torch import Tensor

from ...fusion.adapters.base import Delta, DeltaError, Place, finite, fits, scale_of
from ...fusion.adapters.dense import DenseDelta, densified, weight_difference
from ...fusion.adapters.dora import DoRADelta
from ...fusion.adapters.geometry import Geometry
from ...fusion.adapters.glora import GLoRADelta, glora
from ...fusion.adapters.loha import loha
from ...fusion.adapters.lokr import KroneckerDelta, lokr
from ...fusion.adapters.low_rank import LowRankDelta, low_rank_delta
from ...fusion.adapters.rotations import ButterflyDelta, RotationDelta, boft, oft


class Unroutable(Exception):
    """A patch that core can apply but that cannot be routed; says why."""


def delta_of(patch: Any, geometry: Geometry, offset: tuple[int, int, int] | None) -> Delta:
    """The delta that a patch is to a layer's weight, or to a slice ``(dim, start, length)`` of it.

    Raises:
        DeltaError: nobody can apply it: the message says what is wrong.
        Unroutable: core can.
    """
    place = _place(geometry, offset)
    if not isinstance(patch, core.WeightAdapterBase):
        return _from_tuple(patch, place, geometry)
    _check_tensors(patch)
    delta = _adapter(patch, place)
    grouped = geometry.groups != 1
    if grouped and place.shape != geometry.weight_shape:
        raise Unroutable("it is for a slice of a grouped convolution")
    if grouped:
        if isinstance(delta, GLoRADelta | RotationDelta | ButterflyDelta):
            raise Unroutable(f"{patch.name} on a grouped convolution is not routed")
        delta = densified(delta, place)
    magnitude = _dora_scale(patch)
    if magnitude is not None:
        delta = _dora(delta, magnitude, patch.weights[2], place, grouped)
    partial = place.shape[1] != geometry.weight_shape[1]
    if partial and not isinstance(delta, LowRankDelta | DenseDelta | KroneckerDelta):
        raise Unroutable("it depends on a part of the weight's input channels")
    return delta


def check_mergeable(patch: Any, shape: tuple[int, ...]) -> None:
    """Whether core can merge a patch into a weight, or a slice, of that shape: it only logs what it cannot.

    Raises:
        DeltaError: it cannot.
    """
    place = Place(shape)
    try:
        if isinstance(patch, core.WeightAdapterBase):
            _check_tensors(patch)
            magnitude = _dora_scale(patch)
            if len(shape) < 2 and (magnitude is not None or not isinstance(patch, core.LoRAAdapter)):
                raise DeltaError(f"there is no {patch.name} for a weight of shape {shape}")
            delta = _adapter(patch, place)
            if magnitude is not None:
                _dora(delta, magnitude, None, place, False)
        elif patch[0] == "diff" and len(patch[1]) == 1:
            weight_difference(place, patch[1][0])
        elif patch[0] == "set":
            fits(tuple(patch[1][0].shape) == shape, "a replacement", shape, patch[1][0])
    except Unroutable:
        return


def applicable(patch: Any) -> Any:
    """The patch in a form that core can apply on every version of torch.

    Core's LoKr with a Tucker core makes a transposed ``w2`` that ``torch.kron`` may refuse, and then drops the patch
    with a line in the log.
    """
    if isinstance(patch, core.LoKrAdapter) and patch.weights[1] is None and patch.weights[7] is not None:
        w1, _, alpha, w1_a, w1_b, w2_a, w2_b, tucker, dora_scale = patch.weights
        w1 = w1 if w1 is not None else w1_a.float() @ w1_b.float()
        w2 = torch.einsum("ijkl,jr,ip->prkl", tucker.float(), w2_b.float(), w2_a.float())
        # Core takes no alpha for whole matrices: it goes into one of them.
        w2 = w2.contiguous() * scale_of(alpha, w2_b.shape[0])
        return core.LoKrAdapter(patch.loaded_keys, (w1, w2, None, None, None, None, None, None, dora_scale))
    return patch


def unused_tensors(patch: Any) -> Iterator[Tensor]:
    """What a file holds for an adapter and core loads, but does not apply."""
    unused: tuple[Any, ...] = ()
    if isinstance(patch, core.LoKrAdapter):
        w1, w2, _, *factors, core_tensor, _ = patch.weights
        unused = (*(factors[:2] if w1 is not None else ()), *((*factors[2:], core_tensor) if w2 is not None else ()))
    elif isinstance(patch, core.OFTAdapter):
        unused = (patch.weights[1],)
    return (value for value in unused if value is not None)


def _place(geometry: Geometry, offset: tuple[int, int, int] | None) -> Place:
    shape, starts = list(geometry.weight_shape), [0, 0]
    if offset is not None:
        dim, start, length = offset
        if dim > 1 or start + length > shape[dim]:
            raise DeltaError(f"the slice {offset} does not fit the weight {tuple(shape)}")
        shape[dim], starts[dim] = length, start
    return Place(tuple(shape), *starts)


def _from_tuple(patch: Any, place: Place, geometry: Geometry) -> Delta:
    kind, values = (patch[0], patch[1]) if len(patch) == 2 else ("diff", patch)
    if kind != "diff":
        raise Unroutable(f"a '{kind}' patch replaces the weight")
    if len(values) > 1:
        raise Unroutable("it changes the weight's shape")
    if geometry.groups != 1 and place.shape != geometry.weight_shape:
        raise Unroutable("it is for a slice of a grouped convolution")
    return weight_difference(place, values[0])


def _check_tensors(patch: Any) -> None:
    for value in patch.weights:
        if isinstance(value, Tensor) and not value.is_floating_point():
            raise DeltaError(f"a factor has the dtype {value.dtype}, not a floating point one")
        if isinstance(value, Tensor) and value.ndim == 0:
            raise DeltaError("a factor is a single number")
        if isinstance(value, float) and not math.isfinite(value):
            raise DeltaError(f"alpha {value} is not a finite number")


def _adapter(patch: Any, place: Place) -> Delta:
    """The delta without DoRA. Weights are laid out as core's adapters keep them."""
    w = patch.weights
    if isinstance(patch, core.LoRAAdapter):
        up, down, alpha, mid, dora_scale, reshape = w
        if mid is not None and (mid.ndim != 4 or mid.shape[0] != mid.shape[1]):
            raise DeltaError(f"a Tucker core of shape {tuple(mid.shape)}: ComfyUI cannot apply it either")
        if reshape is not None:
            whole = isinstance(reshape, list) and all(isinstance(n, int) for n in reshape)
            larger = whole and len(reshape) == len(place.shape) and all(map(operator.ge, reshape, place.shape))
            if not larger or dora_scale is not None:
                raise DeltaError(f"reshape_weight {reshape} does not extend a weight of shape {place.shape}")
            low_rank_delta(up, down, tuple(reshape), alpha=alpha, mid=mid)
            raise Unroutable("it changes the weight's shape")
        return low_rank_delta(
            up, down, place.shape, alpha=alpha, mid=mid, out_start=place.out_start, in_start=place.in_start
        )
    if isinstance(patch, core.LoHaAdapter):
        cores = None if w[5] is None else (w[5], w[6])
        return loha(place, (w[0], w[1]), (w[3], w[4]), cores, w[2])
    if isinstance(patch, core.LoKrAdapter):
        first = w[0] if w[0] is not None else (w[3], w[4])
        second = w[1] if w[1] is not None else (w[5], w[6])
        if any(part is None for pair in (first, second) if isinstance(pair, tuple) for part in pair):
            raise DeltaError("LoKr factors are missing")
        return lokr(place, first, second, w[7], w[2])
    if isinstance(patch, core.GLoRAAdapter):
        return glora(place, w[0], w[1], w[2], w[3], w[4])
    if isinstance(patch, core.OFTAdapter):
        return oft(place, w[0], w[2])
    if isinstance(patch, core.BOFTAdapter):
        if w[2] is None:
            raise DeltaError("BOFT without alpha: ComfyUI cannot apply it either")
        return boft(place, w[0], w[1], w[2])
    raise Unroutable(f"adapters of the kind '{patch.name}' are not known here")


def _dora_scale(patch: Any) -> Tensor | None:
    """DoRA's magnitudes; the last weight of every kind but the plain LoRA, which has one more after it."""
    return patch.weights[4] if isinstance(patch, core.LoRAAdapter) else patch.weights[-1]


def _dora(delta: Delta, magnitude: Tensor, alpha: float | None, place: Place, grouped: bool) -> DoRADelta:
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
    if isinstance(delta, RotationDelta | ButterflyDelta):
        # Core's DoRA multiplies by alpha, which for these is no scale but a constraint, and 0 where there is none.
        delta = replace(delta, scale=float(alpha or 0.0))
    return DoRADelta(delta, magnitude.flatten(), on_output)
