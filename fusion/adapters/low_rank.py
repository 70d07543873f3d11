"""Plain LoRA and LoCon: ``dW = scale * up down``."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Bypass, DeltaError, Place, Slices, any_zero, finite, frozen, like, peak, scale_of
from .geometry import Geometry
from .tucker import fold_core

LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class LowRankDelta:
    """One LoRA's low-rank update of one weight, or of one slice of it.

    Attributes:
        down: ``[rank, in, *kernel]``: the down-projection ``A``. For a grouped convolution ``in`` is ``in / groups``.
        up: ``[out, rank]``: the up-projection ``B``.
        scale: ``alpha / rank``, or 1 where the file has no alpha.
        out_start: first output channel the delta writes to (fused weights such as qkv hold several slices).
        in_start: first input channel it reads from.
        origin: where the factors are from: those of like origin are the same. None where nobody knows.
    """

    down: Tensor
    up: Tensor
    scale: float = 1.0
    out_start: int = 0
    in_start: int = 0
    origin: Hashable | None = field(default=None, compare=False, repr=False)

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def out_stop(self) -> int:
        return self.out_start + self.up.shape[0]

    @property
    def is_zero(self) -> bool:
        return any_zero(self.scale, self.up, self.down)

    def check_size(self) -> None:
        """Whether the factors, which may be products of what a file holds, are numbers in float32.

        Raises:
            DeltaError: they are too large.
        """
        if not all(value <= LARGEST for value in (peak(self.up) * abs(self.scale), peak(self.down))):  # NaN is not
            raise DeltaError("its values are too large: they, or their product, are no finite numbers in float32")

    def bypass(self, outer: float, inner: float, dtype: torch.dtype) -> Bypass:
        slices = (self.out_start, self.out_stop, self.in_start, self.down.shape[1])
        return LowRankBypass(self.up.float() * (self.scale * outer), self.down.float(), slices, dtype)

    def dense(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The dense update ``[out, in, *kernel]`` of the delta's own slice (for tests, statistics and baking)."""
        product = self.up.to(dtype) @ self.down.to(dtype).flatten(1)
        return (self.scale * product).reshape(self.up.shape[0], *self.down.shape[1:])


def lora(place: Place, up: Tensor, down: Tensor, mid: Tensor | None, alpha: float | None) -> LowRankDelta:
    """LoRA (arXiv 2106.09685) and LoCon: ``dW = up down``.

    Args:
        place: of the weight ``[out, in, *kernel]``.
        up: ``[out, rank]`` or ``[out, rank, 1, 1]`` (LoCon).
        down: ``[rank, in]``, ``[rank, in, *kernel]``, or either flattened.
        mid: Tucker core ``[rank_up, rank_down, *kernel]`` (LyCORIS LoCon with ``use_tucker``), folded into ``down``.
        alpha: the file's; the scale is ``alpha / down.shape[0]`` as in ComfyUI's merge, 1 if None.

    Raises:
        DeltaError: the factors have the wrong shape for the weight, or hold NaN or infinity.
    """
    for name, tensor in (("up", up), ("down", down), ("mid", mid)):
        finite(**{f"the {name} factor": tensor})
    if up.ndim < 2 or down.ndim < 2:
        raise DeltaError(f"factors need two dimensions, got {tuple(up.shape)} and {tuple(down.shape)}")
    # A rank of 0 has no scale, and without an alpha needs none.
    scale = 1.0 if alpha is None else scale_of(alpha, down.shape[0])
    if mid is not None:
        down = fold_core(place.shape, down, mid)
    up, flat = up.flatten(1), down.flatten(1)
    if up.shape != (place.shape[0], flat.shape[0]) or flat.shape[1] != math.prod(place.shape[1:]):
        raise DeltaError(
            f"up {tuple(up.shape)} x down {tuple(flat.shape)} does not make a weight of shape {place.shape}"
        )
    if flat.shape[0] == 0:  # nothing, as a delta like all others
        up, flat = up.new_zeros(place.shape[0], 1), flat.new_zeros(1, flat.shape[1])
    return LowRankDelta(flat.reshape(-1, *place.shape[1:]), up, scale, place.out_start, place.in_start)


class LowRankBypass(Bypass):
    """``up (down x)``: the inside of a DoRA. A plain LoRA goes the faster way of ``FusedLayer``."""

    def __init__(self, up: Tensor, down: Tensor, slices: Slices, dtype: torch.dtype) -> None:
        super().__init__(*slices)
        self.up, self.down = frozen(up.to(dtype)), frozen(down.to(dtype))

    def forward(self, x: Tensor, geometry: Geometry, linear: Tensor | None, facts: Any, layer: Any) -> Tensor:
        x = geometry.narrow(x, self.in_start, self.in_width)
        return F.linear(geometry.tokens(geometry.project(x, like(self.down, x))), like(self.up, x))

    def dense(self, weight: Tensor | None = None) -> Tensor:
        down = self.down.float()
        return (self.up.float() @ down.flatten(1)).reshape(self.up.shape[0], *down.shape[1:])
