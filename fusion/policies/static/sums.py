"""Sum and average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...layers import SegmentDeltas
from ..registry import listed
from .factors import FactorPolicy, Factors, concatenated


@listed(0)
@dataclass(frozen=True)
class Sum(FactorPolicy):
    """Both LoRAs at their strengths: what stacking two LoRA loaders does."""

    name: ClassVar[str] = "sum"

    @property
    def is_sum(self) -> bool:
        return True

    def merge(self, segment: SegmentDeltas) -> Factors:
        return concatenated(segment)


@listed(1)
@dataclass(frozen=True)
class Average(FactorPolicy):
    """Half of each where both touch a layer; a layer of one LoRA keeps it whole."""

    name: ClassVar[str] = "average"

    def merge(self, segment: SegmentDeltas) -> Factors:
        return concatenated(segment, 0.5, 0.5)
