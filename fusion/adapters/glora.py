"""GLoRA: a delta that depends on the base weight."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Bypass, Place, PlacedDelta, Slices, finite, fits, frozen, like, scale_of
from .geometry import Geometry


@dataclass(frozen=True)
class GLoRADelta(PlacedDelta):
    """``dW = scale * (W mix narrow + up down)`` (see :class:`GLoRABypass`)."""

    mix: Tensor
    narrow: Tensor
    up: Tensor
    down: Tensor
    scale: float = 1.0

    def bypass(self, outer: float, inner: float, dtype: torch.dtype) -> Bypass:
        factors = (self.mix, self.narrow, self.up, self.down)
        return GLoRABypass(*factors, self.scale * outer, self.place.slices, dtype)


def glora(place: Place, a1: Tensor, a2: Tensor, b1: Tensor, b2: Tensor, alpha: float | None) -> GLoRADelta:
    """GLoRA: ``dW = W a1 a2 + b1 b2``; old LyCORIS files hold it the other way round, ``W a2 a1 + b2 b1``.

    Args:
        place: of the weight ``[out, in, *kernel]``.
        a1, a2, b1, b2: the file's; which of the two forms they are shows in their shapes, as core reads them.
        alpha: the file's; the scale is ``alpha / rank``.

    Raises:
        DeltaError: shapes do not fit, or NaN or infinity.
    """
    finite(a1=a1, a2=a2, b1=b1, b2=b2)
    factors = (a1, a2, b1, b2)
    fits(all(f.ndim >= 2 for f in factors), "GLoRA", place.shape, *factors)
    old = b2.shape[1] == b1.shape[0] == a1.shape[0] == a2.shape[1]
    new = b2.shape[0] == b1.shape[1] == a1.shape[1] == a2.shape[0]
    if old and new:
        old = a2.shape[0] == place.shape[0] == place.shape[1]
    fits(old or new, "GLoRA", place.shape, *factors)
    a1, a2, b1, b2 = (f.flatten(1).float() for f in factors)
    out, width, taps = place.shape[0], place.shape[1], math.prod(place.shape[2:])
    if old:
        mix, narrow, up, down = a2, a1, b2, b1
        good = mix.shape[0] == width * taps and narrow.shape[1] == width * taps
    else:
        mix, narrow, up, down = a1, a2, b1, b2
        good = mix.shape[0] == width and narrow.shape[1] == width
    rank = mix.shape[1]
    good = good and narrow.shape[0] == rank and up.shape == (out, rank) and down.shape == (rank, width * taps)
    fits(good, "GLoRA", place.shape, *factors)
    scale = scale_of(alpha, rank)
    narrow = narrow.reshape(rank, *place.shape[1:]) if old else narrow
    return GLoRADelta(place, mix, narrow, up, down.reshape(rank, *place.shape[1:]), scale)


class GLoRABypass(Bypass):
    """``dW = factor (W a1 a2 + b1 b2)`` (GLoRA, arXiv 2306.07967, as LyCORIS writes it).

    Args:
        mix: the matrix next to ``W``, ``[in, rank]``; ``[in * kernel, rank]`` where ``narrow`` holds the kernel.
        narrow: the one after it: ``[rank, in]``, or ``[rank, in, *kernel]`` (old LyCORIS files).
        up, down: ``b1 [out, rank]`` and ``b2 [rank, in, *kernel]``.
    """

    additive = False
    needs_weight = True

    def __init__(
        self, mix: Tensor, narrow: Tensor, up: Tensor, down: Tensor, factor: float, slices: Slices, dtype: torch.dtype
    ) -> None:
        super().__init__(*slices)
        # float32: these two are multiplied with the weight once, not at every call.
        self.mix, self.up = frozen(mix.float() * factor), frozen(up.float() * factor)
        self.narrow, self.down = frozen(narrow.to(dtype)), frozen(down.to(dtype))

    def prepare(self, weight: Tensor, dtype: torch.dtype) -> Any:
        return self._mixed(weight).to(dtype)

    def _mixed(self, weight: Tensor) -> Tensor:
        """``W a1``: ``[out, rank]``, or ``[out, rank, *kernel]`` where ``W`` keeps the kernel."""
        rows, mix = self.own_rows(weight), self.mix.to(weight.device)
        if self.narrow.ndim == rows.ndim:
            return rows.flatten(1) @ mix
        return torch.einsum("oi...,ir->or...", rows, mix)

    def forward(self, x: Tensor, geometry: Geometry, linear: Tensor | None, facts: Any, layer: Any) -> Tensor:
        narrow = like(self.narrow, x)
        if facts.ndim == 2:
            first = F.linear(geometry.tokens(geometry.project(x, narrow)), facts)
        else:
            first = geometry.tokens(geometry.project(torch.einsum("ri,bi...->br...", narrow, x), facts))
        hidden = geometry.tokens(geometry.project(x, like(self.down, x)))
        return first + F.linear(hidden, like(self.up, x))

    def dense(self, weight: Tensor | None = None) -> Tensor:
        assert weight is not None
        mixed, up = self._mixed(weight), self.up.to(weight.device)
        narrow, down = self.narrow.to(mixed), self.down.to(mixed)
        if mixed.ndim == 2:
            first = (mixed @ narrow.flatten(1)).reshape(mixed.shape[0], *narrow.shape[1:])
        else:
            first = torch.einsum("or...,ri->oi...", mixed, narrow)
        return first + (up @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])
