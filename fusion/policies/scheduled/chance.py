"""By chance: a control."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ...layers import SegmentDeltas
from ..base import STYLE, SUBJECT, ScheduledPolicy, StepContext
from ..registry import listed


@listed(19)
@dataclass(frozen=True)
class Chance(ScheduledPolicy):
    """A control: every layer and step is given away by chance, the same on every machine for a seed."""

    name: ClassVar[str] = "random"

    seed: int = 0
    subject_share: float = 0.5

    def prepare(self, segments: Sequence[SegmentDeltas], blocks: str = "") -> list[str]:
        return [segment.name for segment in segments]

    def weights_at(self, prepared: Any, index: int, context: StepContext) -> tuple[float, float]:
        digest = hashlib.sha256(f"{self.seed}:{prepared[index]}:{context.progress:.4f}".encode()).digest()
        return SUBJECT if int.from_bytes(digest[:4], "big") < self.subject_share * 2**32 else STYLE
