"""NP-LoRA: the subject keeps off the style's input subspace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ...layers import SegmentDeltas
from ..registry import listed
from .factors import FactorPolicy, Factors


@listed(10)
@dataclass(frozen=True)
class NPLoRA(FactorPolicy):
    """NP-LoRA (arXiv 2511.11051): the subject is projected off the style's input subspace, softly.

    ``dW = dW_s + dW_c (I - mu/(1+mu) V V^T)`` with ``V`` the right singular vectors of ``dW_s`` that have a singular
    value. In factors: ``A_c' = A_c - mu/(1+mu) (A_c V) V^T``. mu 0 is the sum, a large mu the hard null-space
    projection. A convolution's input space is that of its unfolded patches.
    """

    name: ClassVar[str] = "np_lora"

    mu: float = 0.5

    def __post_init__(self) -> None:
        if not self.mu >= 0:
            raise ValueError(f"mu must not be negative, got {self.mu}")

    def merge(self, segment: SegmentDeltas) -> Factors:
        down_c, down_s = segment.down["subject"].flatten(1), segment.down["style"].flatten(1)
        # A thin QR of A_s, as the paper suggests, would invent directions where A_s or B_s lacks rank: the singular
        # vectors of the product, through the small triangle of B_s, do not.
        triangle = torch.linalg.qr(segment.up["style"].double(), mode="r").R
        _, singular, right = torch.linalg.svd(triangle @ down_s.double(), full_matrices=False)
        basis = right[singular > singular[0] * 1e-7].T.to(down_c)
        projected = down_c - self.mu / (1 + self.mu) * (down_c @ basis) @ basis.T
        up = torch.cat([segment.up["subject"], segment.up["style"]], dim=1)
        return up, torch.cat([projected, down_s]).reshape(-1, *segment.down["style"].shape[1:])
