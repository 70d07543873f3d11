"""TIES: trim, elect signs, average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...layers import SegmentDeltas
from ...roles import ROLES
from ..base import StaticPolicy
from ..registry import listed
from .entries import check_density, elect_and_mean, top_fraction


@listed(11)
@dataclass(frozen=True)
class TIES(StaticPolicy):
    """TIES-Merging (arXiv 2306.01708): trim, elect signs, average what agrees.

    On the dense deltas, as the paper does with its task vectors (PEFT's ``ties`` works on the factors). The sign is
    elected after the strengths are applied, as in mergekit; an even vote counts as +, as in PEFT.

    Attributes:
        density: share of entries kept (the paper's 0.2 is for many full models).
        scale: of the merged delta; with two LoRAs the average of one agreeing entry is that entry.
    """

    name: ClassVar[str] = "ties"

    density: float = 0.5
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_density(self.density)

    def merge(self, segment: SegmentDeltas) -> Tensor:
        return self.scale * elect_and_mean([top_fraction(segment.dense(role), self.density) for role in ROLES])
