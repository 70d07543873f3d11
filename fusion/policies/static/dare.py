"""DARE: drop by chance and rescale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...layers import SegmentDeltas
from ...roles import ROLES
from ..base import StaticPolicy
from ..registry import listed
from .entries import check_density, uniform


@listed(12)
@dataclass(frozen=True)
class DARE(StaticPolicy):
    """DARE (arXiv 2311.03099): entries are dropped by chance and the rest rescaled by ``1 / density``; then the sum.

    The expectation of the merge is the plain sum.

    Attributes:
        density: share of entries kept, on average.
        seed: of the draw; every layer and role draws apart.
    """

    name: ClassVar[str] = "dare"

    density: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        check_density(self.density)

    def merge(self, segment: SegmentDeltas) -> Tensor:
        total = None
        for role in ROLES:
            dense = segment.dense(role)
            kept = dense * (uniform(segment.name, role, self.seed, dense) < self.density) / self.density
            total = kept if total is None else total + kept
        assert total is not None
        return total
