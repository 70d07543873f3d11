"""CRAFT-LoRA's asymmetric guidance: LoRAs on the positive prompt alone, each in its own part of the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..base import ScheduledPolicy, StepContext
from ..registry import listed

WHATEVER_CFG_ALLOWS = 100.0


@listed(22)
@dataclass(frozen=True)
class CRAFT(ScheduledPolicy):
    """The sampling side of CRAFT-LoRA (arXiv 2602.18936), which trains files of its own kind besides.

    The negative prompt's pass gets neither LoRA, so that classifier-free guidance multiplies what they do; the content
    LoRA is on in steps 1-35 of 50 and the style LoRA in steps 15-50. Layers of one LoRA alone keep it throughout.

    Attributes:
        subject_until: where the subject ends, as a share of the run.
        style_from: where the style begins.
    """

    name: ClassVar[str] = "craft"

    subject_until: float = 35 / 50
    style_from: float = 14 / 50

    @property
    def own_emphasis(self) -> float:
        return WHATEVER_CFG_ALLOWS

    def weights_at(self, prepared: Any, index: int, context: StepContext) -> tuple[float, float]:
        return float(context.progress < self.subject_until), float(context.progress >= self.style_from)
