"""The sum at a lower rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ...layers import SegmentDeltas
from ...roles import ROLES
from ..registry import listed
from .factors import FactorPolicy, Factors, concatenated


@listed(15)
@dataclass(frozen=True)
class SVD(FactorPolicy):
    """The sum, cut to its ``rank`` largest singular directions (0: the larger rank of the two)."""

    name: ClassVar[str] = "svd"

    rank: int = 0

    def merge(self, segment: SegmentDeltas) -> Factors:
        up, down = concatenated(segment)
        rank = self.rank or max(segment.rank(role) for role in ROLES)
        # SVD of a product of thin factors: two QRs and a small core.
        q_up, r_up = torch.linalg.qr(up.double())
        q_down, r_down = torch.linalg.qr(down.double().flatten(1).T)
        u, s, vh = torch.linalg.svd(r_up @ r_down.T)
        cut_up = (q_up @ u[:, :rank]) * s[:rank]
        cut_down = vh[:rank] @ q_down.T
        return cut_up.to(up), cut_down.to(down).reshape(-1, *down.shape[1:])
