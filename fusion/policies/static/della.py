"""DELLA: drop by chance, the small ones likelier, and elect signs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...layers import SegmentDeltas
from ...roles import ROLES
from ..base import StaticPolicy
from ..registry import listed
from .entries import check_density, elect_and_mean, uniform


@listed(13)
@dataclass(frozen=True)
class DELLA(StaticPolicy):
    """DELLA (arXiv 2406.11617): like DARE, but larger entries of a row are kept likelier; then TIES' election.

    An entry of rank i (0 smallest) among the n of its row is kept with probability
    ``density - epsilon + 2 epsilon i / (n - 1)`` and divided by it. Follows mergekit's spread of +- epsilon (the
    paper's is +- epsilon / 2) and the paper's rescaling of each entry by its own probability.

    Attributes:
        density: mean share of entries kept.
        epsilon: how much the largest entry of a row is favoured, the smallest disfavoured.
        seed: of the draw.
    """

    name: ClassVar[str] = "della"

    density: float = 0.5
    epsilon: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        check_density(self.density)
        if not 0 <= self.epsilon < min(self.density, 1 - self.density + 1e-12):
            raise ValueError(f"epsilon must keep density +- epsilon within (0, 1], got {self.epsilon}")

    def merge(self, segment: SegmentDeltas) -> Tensor:
        kept = []
        for role in ROLES:
            dense = segment.dense(role)
            rows = dense.flatten(1)
            order = rows.abs().argsort(1).argsort(1).to(rows)
            p = self.density - self.epsilon + 2 * self.epsilon * order / max(1, rows.shape[1] - 1)
            chosen = uniform(segment.name, role, self.seed, rows) < p
            kept.append((rows * chosen / p).reshape(dense.shape))
        return elect_and_mean(kept)
