"""LoHa: the product, entry by entry, of two low-rank matrices."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from .base import Place, finite, fits, scale_of
from .dense import DenseDelta
from .low_rank import LowRankDelta
from .tucker import factor_pair


def loha(
    place: Place, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], cores: Any, alpha: float | None
) -> LowRankDelta | DenseDelta:
    """LoHa: ``dW = (w1a w1b) * (w2a w2b)``, the product entry by entry (FedPara, arXiv 2108.06098).

    The entrywise product of matrices of rank ``r1`` and ``r2`` has rank ``r1 r2`` with the Khatri-Rao products of the
    factors; where that is cheaper than the dense matrix it is kept so.

    Args:
        place: of the weight ``[out, in, *kernel]``.
        first, second: ``(a [out, rank], b [rank, in * kernel])``; with cores ``(a [rank, out], b [rank, in])``.
        cores: Tucker cores ``(t1, t2)`` ``[rank, rank, *kernel]``, or None.
        alpha: the file's; the scale is ``alpha / b1.shape[0]``.

    Raises:
        DeltaError: shapes do not fit, or NaN or infinity.
    """
    finite(hada_w1_a=first[0], hada_w1_b=first[1], hada_w2_a=second[0], hada_w2_b=second[1])
    halves = []
    for (a, b), core in zip((first, second), cores or (None, None), strict=True):
        up, down = factor_pair(place.shape, "LoHa", a, b, core)
        fits(up.shape[0] == place.shape[0] and down[0].numel() == math.prod(place.shape[1:]), "LoHa", place.shape, a, b)
        halves.append((up, down.flatten(1)))
    scale = scale_of(alpha, first[1].shape[0])
    (up1, down1), (up2, down2) = halves
    rank, out, width = up1.shape[1] * up2.shape[1], place.shape[0], down1.shape[1]
    if rank * (out + width) <= out * width:
        up = (up1[:, :, None] * up2[:, None, :]).flatten(1)
        down = (down1[:, None] * down2[None]).flatten(0, 1).reshape(rank, *place.shape[1:])
        return LowRankDelta(down, up, scale, place.out_start, place.in_start)
    return DenseDelta(place, ((up1 @ down1) * (up2 @ down2)).reshape(place.shape), scale)
