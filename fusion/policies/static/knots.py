"""KnOTS: TIES in the directions that both LoRAs share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ...layers import SegmentDeltas
from ...roles import ROLES
from ..registry import listed
from .entries import check_density, elect_and_mean, top_fraction
from .factors import FactorPolicy, Factors

ROUNDING = 1e-7


@listed(20)
@dataclass(frozen=True)
class KnOTS(FactorPolicy):
    """KnOTS (arXiv 2410.19735): one SVD of both deltas side by side, then TIES on what each LoRA has of it.

    ``[dW_c | dW_s] = U S [V_c^T | V_s^T]``; the parts ``V^T`` are merged as :class:`TIES` merges deltas, and the merge
    is ``U S V^T``. It has no more directions than both files together, so nothing is cut off. The paper tunes the
    density and a scale for each task; here they are those of ``ties``.

    Attributes:
        density: share of the entries of each part that is kept.
        scale: of the merged delta.
    """

    name: ClassVar[str] = "knots"

    density: float = 0.5
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_density(self.density)

    def merge(self, segment: SegmentDeltas) -> Factors:
        ups = torch.cat([segment.up[role] for role in ROLES], dim=1).double()
        downs = [segment.down[role].flatten(1).double() for role in ROLES]
        # [B_c A_c | B_s A_s] = [B_c | B_s] diag(A_c, A_s): two QRs and the SVD of a small core.
        basis, left = torch.linalg.qr(ups)
        rights = [torch.linalg.qr(down.T) for down in downs]
        core = left @ torch.block_diag(*(r.T for _, r in rights))
        u, s, vh = torch.linalg.svd(core, full_matrices=False)
        kept = s > s[0] * ROUNDING
        parts = vh[kept].split([len(r) for _, r in rights], dim=1)
        wholes = [part @ q.T for part, (q, _) in zip(parts, rights, strict=True)]
        # What is rounding has no vote: a LoRA that is zero here is not there.
        parts = [top_fraction(part.where(part.abs() > ROUNDING, 0.0), self.density) for part in wholes]
        up = self.scale * (basis @ u[:, kept]) * s[kept]
        down = segment.down["style"]
        return up.to(segment.up["style"]), elect_and_mean(parts).to(down).reshape(-1, *down.shape[1:])
