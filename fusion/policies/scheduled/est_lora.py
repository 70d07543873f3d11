"""EST-LoRA: energy decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ...layers import SegmentDeltas
from ..base import STYLE, SUBJECT, ScheduledPolicy, StepContext
from ..registry import listed


@listed(9)
@dataclass(frozen=True)
class ESTLoRA(ScheduledPolicy):
    """EST-LoRA (arXiv 2508.02165): energy decides. Subject iff ``E_c >= gamma_t E_s``, ``gamma_t = alpha t/T + 1 - D``.

    ``E = ||dW||_F^2``. Follows SD.Next, not the paper, in dividing ``E_c`` by the balance ``sum E_c / sum E_s``.

    Attributes:
        alpha: slope of the schedule.
        discrepancy: D in [0, 1], how far the style is from the base model's own look. The paper measures it from
            probe pictures; 0.5 is SD.Next's default.
    """

    name: ClassVar[str] = "est_lora"

    alpha: float = 1.5
    discrepancy: float = 0.5

    def prepare(self, segments: Sequence[SegmentDeltas], blocks: str = "") -> list[tuple[float, float]]:
        energies = [(s.energy("subject"), s.energy("style")) for s in segments]
        balance = sum(c for c, _ in energies) / max(sum(s for _, s in energies), 1e-30)
        return [(c / max(balance, 1e-30), s) for c, s in energies]

    def weights_at(self, prepared: Any, index: int, context: StepContext) -> tuple[float, float]:
        subject, style = prepared[index]
        return SUBJECT if subject >= (self.alpha * context.progress + 1 - self.discrepancy) * style else STYLE
