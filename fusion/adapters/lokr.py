"""LoKr: a Kronecker product."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Bypass, Place, PlacedDelta, Slices, any_zero, finite, fits, frozen, like, scale_of
from .dense import DenseDelta
from .geometry import Geometry
from .tucker import factor_pair


@dataclass(frozen=True)
class KroneckerDelta(PlacedDelta):
    """``dW = scale * w1 kron w2``, ``w2 = up down`` or whole (see :class:`KroneckerBypass`)."""

    w1: Tensor
    up: Tensor | None
    down: Tensor
    scale: float = 1.0

    @property
    def is_zero(self) -> bool:
        return any_zero(self.scale, self.w1, self.up, self.down)

    def bypass(self, outer: float, inner: float, dtype: torch.dtype) -> Bypass:
        up = None if self.up is None else self.up.float()
        w1 = self.w1.float() * (self.scale * outer)
        return KroneckerBypass(w1, up, self.down.float(), self.place.slices, dtype)


def lokr(
    place: Place,
    w1: Tensor | tuple[Tensor, Tensor],
    w2: Tensor | tuple[Tensor, Tensor],
    core: Tensor | None,
    alpha: float | None,
) -> KroneckerDelta | DenseDelta:
    """LoKr: ``dW = w1 kron w2`` (KronA, arXiv 2212.10650, as LyCORIS writes it).

    Args:
        place: of the weight.
        w1: ``[a, b]``, whole or as factors.
        w2: ``[c, d, *kernel]``, whole or as factors ``([c, rank], [rank, d * kernel])``.
        core: Tucker core of ``w2``: its factors are then ``([rank, c], [rank, d])``.
        alpha: the file's. The scale is ``alpha / rank`` of the last factor pair there is; 1 if both are whole.

    Raises:
        DeltaError: shapes do not fit, or NaN or infinity.
    """
    rank = None
    if isinstance(w1, tuple):
        finite(lokr_w1_a=w1[0], lokr_w1_b=w1[1])
        fits(w1[0].ndim == w1[1].ndim == 2 and w1[0].shape[1] == w1[1].shape[0], "LoKr w1", place.shape, *w1)
        fits(w1[0].shape[0] * w1[1].shape[1] <= math.prod(place.shape), "LoKr w1", place.shape, *w1)
        rank, w1 = w1[1].shape[0], w1[0].float() @ w1[1].float()
    up: Tensor | None = None
    if isinstance(w2, tuple):
        finite(lokr_w2_a=w2[0], lokr_w2_b=w2[1])
        rank = w2[1].shape[0]
        up, w2 = factor_pair(place.shape, "LoKr w2", *w2, core)
    finite(lokr_w1=w1, lokr_w2=w2)
    # Whatever the rank, alpha of whole matrices is not used.
    scale = 1.0 if rank is None else scale_of(alpha, rank)
    rows = 1 if up is None else up.shape[0]
    fits(w1.numel() > 0 and w2.numel() * rows > 0, "LoKr", place.shape, w1, w2)
    # Before they are multiplied out: a small file can hold the factors of a huge matrix.
    entries = w2.numel() if up is None else rows * w2.shape[1:].numel()
    fits(entries <= math.prod(place.shape), "LoKr w2", place.shape, w1, w2)
    width = up.shape[0] if up is not None else w2.shape[0]
    runs_fit = (
        w1.ndim == 2
        and w2.ndim >= 2
        and w1.shape[0] * width == place.shape[0]
        and place.shape[1] % w1.shape[1] == 0
        and w2[0].numel() * w1.shape[1] == math.prod(place.shape[1:])
    )
    whole = w2 if up is None else (up @ w2.flatten(1)).reshape(up.shape[0], *w2.shape[1:])
    if runs_fit and whole.ndim in (2, 4):
        return KroneckerDelta(
            place, w1, up, w2.reshape(w2.shape[0], place.shape[1] // w1.shape[1], *place.shape[2:]), scale
        )
    # Core's product of whole one- and three-dimensional kernels mixes their axes; it is what core's users get.
    fits(w1.ndim == 2 and w1.numel() * whole.numel() == math.prod(place.shape), "LoKr", place.shape, w1, w2)
    return DenseDelta(place, torch.kron(w1.float(), whole.float()).reshape(place.shape), scale)


class KroneckerBypass(Bypass):
    """``(w1 kron w2) x`` without the product: ``w2`` on runs of the input, then ``w1`` across the runs (LoKr).

    Args:
        w1: ``[a, b]``.
        up: ``[c, rank]``, or None if ``w2`` is whole.
        down: ``[rank, d, *kernel]``, or the whole ``w2`` ``[c, d, *kernel]``.
    """

    def __init__(self, w1: Tensor, up: Tensor | None, down: Tensor, slices: Slices, dtype: torch.dtype) -> None:
        super().__init__(*slices)
        self.w1, self.down = frozen(w1.to(dtype)), frozen(down.to(dtype))
        self.up = None if up is None else frozen(up.to(dtype))

    def forward(self, x: Tensor, geometry: Geometry, linear: Tensor | None, facts: Any, layer: Any) -> Tensor:
        x = geometry.narrow(x, self.in_start, self.in_width)
        w1, down = like(self.w1, x), like(self.down, x)
        runs = w1.shape[1]
        if geometry.is_conv:
            hidden = geometry.project(x.reshape(x.shape[0] * runs, -1, *x.shape[2:]), down)
            hidden = hidden.flatten(2).reshape(x.shape[0], runs, down.shape[0], -1).permute(0, 3, 1, 2)
        else:
            tokens = geometry.tokens(x)
            hidden = F.linear(tokens.reshape(*tokens.shape[:2], runs, -1), down)
        hidden = torch.matmul(w1, hidden)
        if self.up is not None:
            hidden = F.linear(hidden, like(self.up, x))
        return hidden.flatten(2)

    def dense(self, weight: Tensor | None = None) -> Tensor:
        w2 = self.down.float()
        if self.up is not None:
            w2 = (self.up.float() @ w2.flatten(1)).reshape(self.up.shape[0], *w2.shape[1:])
        return torch.kron(self.w1.float().reshape(*self.w1.shape, *[1] * (w2.ndim - 2)), w2)
