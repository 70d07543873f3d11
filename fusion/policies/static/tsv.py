"""TSV-Merge: both LoRAs' singular vectors, made orthogonal to one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...layers import SegmentDeltas
from ...roles import ROLES
from ..registry import listed
from .factors import FactorPolicy, Factors, svd_of_product


def nearest_orthonormal(vectors: Tensor) -> Tensor:
    """The matrix with orthonormal columns that is nearest to one of as many columns (orthogonal Procrustes).

    Of more columns than rows, the rows are orthonormal.
    """
    u, _, vh = torch.linalg.svd(vectors, full_matrices=False)
    return u @ vh


@listed(21)
@dataclass(frozen=True)
class TSV(FactorPolicy):
    """Task singular vectors (arXiv 2412.00081): directions that both LoRAs claim are pushed apart.

    With ``dW_k = U_k S_k V_k^T``, the vectors of both are put side by side, ``U = [U_c U_s]`` and ``V`` likewise, and
    each is replaced by the nearest matrix with orthonormal columns: ``dW = U' diag(S_c, S_s) V'^T``. LoRAs whose
    directions are orthogonal are added as they are. The paper first cuts each delta to its share of the full rank; a
    LoRA is below that.
    """

    name: ClassVar[str] = "tsv"

    def merge(self, segment: SegmentDeltas) -> Factors:
        ups, values, downs = zip(*(self._vectors(segment, role) for role in ROLES), strict=True)
        up, down = (nearest_orthonormal(torch.cat(vectors, dim=1)) for vectors in (ups, downs))
        like = segment.down["style"]
        return (up * torch.cat(values)).to(segment.up["style"]), down.T.to(like).reshape(-1, *like.shape[1:])

    @staticmethod
    def _vectors(segment: SegmentDeltas, role: str) -> tuple[Tensor, Tensor, Tensor]:
        """Left singular vectors, singular values, right singular vectors of a delta, less those that are rounding."""
        u, s, v = svd_of_product(segment.up[role], segment.down[role])
        kept = s > s[0] * 1e-7
        return u[:, kept], s[kept], v[:, kept]
