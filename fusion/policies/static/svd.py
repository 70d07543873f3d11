"""The sum at a lower rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...layers import SegmentDeltas
from ...roles import ROLES
from ..registry import listed
from .factors import FactorPolicy, Factors, concatenated, svd_of_product


@listed(15)
@dataclass(frozen=True)
class SVD(FactorPolicy):
    """The sum, cut to its ``rank`` largest singular directions (0: the larger rank of the two)."""

    name: ClassVar[str] = "svd"

    rank: int = 0

    def merge(self, segment: SegmentDeltas) -> Factors:
        up, down = concatenated(segment)
        rank = self.rank or max(segment.rank(role) for role in ROLES)
        u, s, v = svd_of_product(up, down)
        return (u[:, :rank] * s[:rank]).to(up), v[:, :rank].T.to(down).reshape(-1, *down.shape[1:])
