"""SSR-Merge (arXiv 2606.10617): a merge that routes each LoRA's own inputs to it, from one calibration step a LoRA."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..layers import SegmentDeltas
from .static.factors import FactorPolicy, Factors, concatenated


@dataclass(frozen=True)
class Moments:
    """What calibration saw at one segment, through the joined down-projections ``z = [A_c; A_s] x``.

    Attributes:
        gram: ``G = sum_k Z_k Z_k^T``, ``[rank, rank]`` float64, rank that of both roles together.
        guide: ``Q``, whose rows of role k are ``(A_k X_k) Z_k^T``.
        tokens: how many inputs were summed.
    """

    gram: Tensor
    guide: Tensor
    tokens: int

    def router(self, ridge: float) -> Tensor:
        """``R = Q G^-1`` of the means over tokens, with the ridge on G."""
        gram = self.gram / self.tokens + ridge * torch.eye(len(self.gram), dtype=self.gram.dtype)
        return torch.linalg.solve(gram, self.guide / self.tokens, left=False)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Moments by segment, and the LoRAs they were measured with (the fusion's header of them)."""

    moments: Mapping[str, Moments]
    loras: tuple[dict[str, Any], ...]

    @property
    def digest(self) -> str:
        value = hashlib.sha256()
        for name in sorted(self.moments):
            value.update(name.encode() + self.moments[name].gram.numpy().tobytes())
        return value.hexdigest()[:16]


@dataclass(frozen=True)
class SSRMerge(FactorPolicy):
    """``dW = [B_c | B_s] R [A_c; A_s]`` with ``R = Q G^-1``: on a LoRA's own inputs, its own delta alone.

    Follows the official code: moments are means over tokens, the ridge is absolute on ``G``, the solution is in
    float64, and a layer that calibration did not reach keeps the plain sum (R = I).

    Attributes:
        ridge: lambda.
        calibration: the moments; there is no merge without them.
    """

    name: ClassVar[str] = "ssr_merge"

    ridge: float = 1e-4
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        if not self.ridge >= 0:
            raise ValueError(f"ridge must not be negative, got {self.ridge}")

    def settings(self) -> dict[str, Any]:
        measured = None if self.calibration is None else self.calibration.digest
        return {"policy": self.name, "ridge": self.ridge, "calibration": measured}

    def merge(self, segment: SegmentDeltas) -> Factors:
        if self.calibration is None:
            raise ValueError("ssr_merge has not been calibrated")
        up, down = concatenated(segment)
        moments = self.calibration.moments.get(segment.name)
        if moments is None:
            return up, down
        return (up.double() @ moments.router(self.ridge)).to(up), down
