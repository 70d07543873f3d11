"""Plain LoRA and LoCon: ``dW = scale * up down``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Bypass, DeltaError, finite, fits, frozen, like
from .geometry import Geometry


@dataclass(frozen=True)
class LowRankDelta:
    """One LoRA's low-rank update of one weight, or of one slice of it.

    Attributes:
        down: ``[rank, in, *kernel]``: the down-projection ``A``. For a grouped convolution ``in`` is ``in / groups``.
        up: ``[out, rank]``: the up-projection ``B``.
        scale: ``alpha / rank``, or 1 where the file has no alpha.
        out_start: first output channel the delta writes to (fused weights such as qkv hold several slices).
        in_start: first input channel it reads from.
    """

    down: Tensor
    up: Tensor
    scale: float = 1.0
    out_start: int = 0
    in_start: int = 0

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def out_stop(self) -> int:
        return self.out_start + self.up.shape[0]

    def bypass(self, outer: float, inner: float, dtype: torch.dtype) -> Bypass:
        """The delta as a module of its own, ``outer`` times (see :class:`.adapters.Delta`)."""
        slices = (self.out_start, self.out_stop, self.in_start, self.down.shape[1])
        return LowRankBypass(self.up.float() * (self.scale * outer), self.down.float(), slices, dtype)

    def dense(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The dense update ``[out, in, *kernel]`` of the delta's own slice (for tests, statistics and baking)."""
        product = self.up.to(dtype) @ self.down.to(dtype).flatten(1)
        return (self.scale * product).reshape(self.up.shape[0], *self.down.shape[1:])


def low_rank_delta(
    up: Tensor,
    down: Tensor,
    weight_shape: tuple[int, ...],
    *,
    alpha: float | None = None,
    mid: Tensor | None = None,
    out_start: int = 0,
    in_start: int = 0,
) -> LowRankDelta:
    """Build a delta from a file's factors for a weight slice of shape ``[out, in, *kernel]``.

    Args:
        up: ``[out, rank]`` or ``[out, rank, 1, 1]`` (LoCon).
        down: ``[rank, in]``, ``[rank, in, *kernel]``, or either flattened.
        weight_shape: shape of the slice of the weight that the delta is for.
        alpha: the file's alpha; the scale is ``alpha / down.shape[0]`` as in ComfyUI's merge, 1 if None.
        mid: Tucker core ``[rank_up, rank_down, *kernel]`` (LyCORIS LoCon with ``use_tucker``), folded into ``down``.
        out_start, in_start: where the slice begins in the whole weight.

    Raises:
        DeltaError: the factors have the wrong shape for the weight, or hold NaN or infinity.
    """
    for name, tensor in (("up", up), ("down", down), ("mid", mid)):
        if tensor is not None and not bool(torch.isfinite(tensor.float()).all()):
            raise DeltaError(f"the {name} factor holds NaN or infinite values")
    if up.ndim < 2 or down.ndim < 2:
        raise DeltaError(f"factors need two dimensions, got {tuple(up.shape)} and {tuple(down.shape)}")
    scale = 1.0 if alpha is None else alpha / down.shape[0]
    if not math.isfinite(scale):
        raise DeltaError(f"alpha {alpha} is not a finite number")
    if mid is not None:
        down = fold_tucker(down, mid)
    up, flat_down = up.flatten(1), down.flatten(1)
    out_features, in_features = weight_shape[0], math.prod(weight_shape[1:])
    if up.shape[0] != out_features or flat_down.shape[1] != in_features or up.shape[1] != flat_down.shape[0]:
        raise DeltaError(
            f"up {tuple(up.shape)} x down {tuple(flat_down.shape)} does not make a weight of shape "
            f"{tuple(weight_shape)}"
        )
    return LowRankDelta(flat_down.reshape(-1, *weight_shape[1:]), up, scale, out_start, in_start)


def fold_tucker(down: Tensor, mid: Tensor) -> Tensor:
    """``down`` convolved with the Tucker core: ``A'[m, i, ...] = sum_n mid[m, n, ...] down[n, i]``.

    Args:
        down: ``[rank_down, in]`` or ``[rank_down, in, 1, 1]``.
        mid: ``[rank_up, rank_down, *kernel]``.

    Returns:
        ``[rank_up, in, *kernel]``.
    """
    flat = down.flatten(1)
    if mid.ndim < 2 or mid.shape[1] != flat.shape[0]:
        raise DeltaError(f"Tucker core {tuple(mid.shape)} does not fit down {tuple(down.shape)}")
    return torch.einsum("mn...,ni->mi...", mid.float(), flat.float())


def with_core(shape: tuple[int, ...], what: str, a: Tensor, b: Tensor, core: Tensor | None) -> tuple[Tensor, Tensor]:
    """``(up [out, rank], down [rank, in, *kernel])`` of a factor pair, a Tucker core folded into ``down``."""
    if core is None:
        fits(a.ndim == 2 and b.ndim == 2 and a.shape[1] == b.shape[0] > 0, what, shape, a, b)
        return a.float(), b.float()
    finite(core=core)
    # Core knows Tucker cores of two-dimensional convolutions only.
    fits(a.ndim == 2 and b.ndim == 2 and core.ndim == 4, f"{what} with a Tucker core", shape, a, b, core)
    fits(tuple(core.shape[:2]) == (a.shape[0], b.shape[0]) and core.numel() > 0, what, shape, a, b, core)
    return a.float().T, torch.einsum("ijkl,jr->irkl", core.float(), b.float())


class LowRankBypass(Bypass):
    """``up (down x)``: the inside of a DoRA. A plain LoRA goes the faster way of ``FusedLayer``."""

    def __init__(self, up: Tensor, down: Tensor, slices: tuple[int, int, int, int], dtype: torch.dtype) -> None:
        super().__init__(*slices)
        self.up, self.down = frozen(up.to(dtype)), frozen(down.to(dtype))

    def forward(self, x: Tensor, geometry: Geometry, linear: Tensor | None, facts: Any, layer: Any) -> Tensor:
        x = geometry.narrow(x, self.in_start, self.in_width)
        return F.linear(geometry.tokens(geometry.project(x, like(self.down, x))), like(self.up, x))

    def dense(self, weight: Tensor | None = None) -> Tensor:
        down = self.down.float()
        return (self.up.float() @ down.flatten(1)).reshape(self.up.shape[0], *down.shape[1:])
