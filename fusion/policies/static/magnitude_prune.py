"""Each delta's largest entries, summed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...layers import SegmentDeltas
from ...roles import ROLES
from ..base import StaticPolicy
from ..registry import listed
from .entries import check_density, top_fraction


@listed(14)
@dataclass(frozen=True)
class MagnitudePrune(StaticPolicy):
    """Each delta keeps its largest entries, as in PEFT's ``magnitude_prune_svd`` but undiminished; then the sum.

    On the dense deltas: PEFT's variant without ``svd`` prunes the factors, which prunes other entries.

    Attributes:
        density: share of entries kept.
    """

    name: ClassVar[str] = "magnitude_prune"

    density: float = 0.5

    def __post_init__(self) -> None:
        check_density(self.density)

    def merge(self, segment: SegmentDeltas) -> Tensor:
        return sum(top_fraction(segment.dense(role), self.density) for role in ROLES)  # type: ignore[return-value]
