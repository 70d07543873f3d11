"""Weight differences, and whatever is cheapest as a dense matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .base import Bypass, Delta, Place, PlacedDelta, Slices, any_zero, finite, fits, frozen, like
from .geometry import Geometry


@dataclass(frozen=True)
class DenseDelta(PlacedDelta):
    """``dW = scale * weight`` with ``weight`` ``[out, in, *kernel]``."""

    weight: Tensor
    scale: float = 1.0

    @property
    def is_zero(self) -> bool:
        return any_zero(self.scale, self.weight)

    def bypass(self, outer: float, inner: float, dtype: torch.dtype) -> Bypass:
        return DenseBypass(self.weight.float() * (self.scale * outer), self.place.slices, dtype)


def densified(delta: Delta, place: Place) -> DenseDelta:
    """An additive delta as its dense matrix: cheapest for grouped convolutions, whose weights are thin."""
    return DenseDelta(place, delta.bypass(1.0, 1.0, torch.float32).dense())


def weight_difference(place: Place, weight: Tensor) -> DenseDelta:
    """A ``diff`` patch: the dense ``dW``.

    Raises:
        DeltaError: it has another shape than the weight, or holds NaN or infinity.
    """
    fits(tuple(weight.shape) == place.shape, "a difference", place.shape, weight)
    finite(diff=weight)
    return DenseDelta(place, weight)


class DenseBypass(Bypass):
    """``dW x`` with the dense ``dW``: weight differences, and adapters whose rank is as large as the layer."""

    def __init__(self, delta: Tensor, slices: Slices, dtype: torch.dtype) -> None:
        super().__init__(*slices)
        self.delta = frozen(delta.to(dtype))

    def forward(self, x: Tensor, geometry: Geometry, linear: Tensor | None, facts: Any, layer: Any) -> Tensor:
        if geometry.groups == 1:
            x = geometry.narrow(x, self.in_start, self.in_width)
        return geometry.tokens(geometry.project(x, like(self.delta, x), geometry.groups))

    def dense(self, weight: Tensor | None = None) -> Tensor:
        return self.delta.float()
