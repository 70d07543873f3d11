"""Merges that stay low-rank: kept as factors, not as a dense delta."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...layers import SegmentDeltas
from ...roles import ROLES
from ..base import StaticPolicy

Factors = tuple[Tensor, Tensor]


def concatenated(segment: SegmentDeltas, subject: float = 1.0, style: float = 1.0) -> Factors:
    """Exact factors of the weighted sum: ``[w_c B_c | w_s B_s]`` and ``[A_c; A_s]`` (PEFT's ``cat``)."""
    up = torch.cat([subject * segment.up["subject"], style * segment.up["style"]], dim=1)
    return up, torch.cat([segment.down[role] for role in ROLES])


def svd_of_product(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``U`` ``[out, r]``, ``S`` ``[r]`` and ``V`` ``[in * kernel, r]`` of ``up @ down``, float64, r their rank.

    Two QRs and the SVD of a small core: the product is never formed.
    """
    q_up, r_up = torch.linalg.qr(up.double())
    q_down, r_down = torch.linalg.qr(down.double().flatten(1).T)
    u, s, vh = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    return q_up @ u, s, q_down @ vh.T


@dataclass(frozen=True)
class FactorPolicy(StaticPolicy):
    """Static policies whose merge is low-rank."""

    @property
    def exact_factors(self) -> bool:
        return True
