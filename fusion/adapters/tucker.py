"""Tucker cores: a small tensor between two factors, which holds a convolution's kernel (LyCORIS ``use_tucker``)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .base import DeltaError, finite, fits


def fold_core(shape: tuple[int, ...], down: Tensor, mid: Tensor) -> Tensor:
    """``down`` convolved with the Tucker core: ``A'[m, i, ...] = sum_n mid[m, n, ...] down[n, i]``.

    Args:
        shape: of the weight: a core that is too large for it is not multiplied out.
        down: ``[rank_down, in]`` or ``[rank_down, in, 1, 1]``.
        mid: ``[rank_up, rank_down, *kernel]``.

    Returns:
        ``[rank_up, in, *kernel]``.
    """
    flat = down.flatten(1)
    if mid.ndim < 2 or mid.shape[1] != flat.shape[0]:
        raise DeltaError(f"Tucker core {tuple(mid.shape)} does not fit down {tuple(down.shape)}")
    fits(mid.shape[2:].numel() * flat.shape[1] == math.prod(shape[1:]), "a Tucker core", shape, mid, down)
    return torch.einsum("mn...,ni->mi...", mid.float(), flat.float())


def factor_pair(shape: tuple[int, ...], what: str, a: Tensor, b: Tensor, core: Tensor | None) -> tuple[Tensor, Tensor]:
    """``(up [out, rank], down [rank, in, *kernel])`` of a factor pair, a Tucker core folded into ``down``."""
    if core is None:
        fits(a.ndim == 2 and b.ndim == 2 and a.shape[1] == b.shape[0] > 0, what, shape, a, b)
        return a.float(), b.float()
    finite(core=core)
    # Core knows Tucker cores of two-dimensional convolutions only.
    fits(a.ndim == 2 and b.ndim == 2 and core.ndim == 4, f"{what} with a Tucker core", shape, a, b, core)
    fits(tuple(core.shape[:2]) == (a.shape[0], b.shape[0]) and core.numel() > 0, what, shape, a, b, core)
    # Before it is multiplied out: a small file can hold the factors of a huge matrix.
    fits(core.shape[2:].numel() * b.shape[1] <= math.prod(shape[1:]), what, shape, a, b, core)
    return a.float().T, torch.einsum("ijkl,jr->irkl", core.float(), b.float())
