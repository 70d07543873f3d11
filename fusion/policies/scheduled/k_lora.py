"""K-LoRA: the largest entries decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ...layers import SegmentDeltas
from ...roles import ROLES
from ..base import STYLE, SUBJECT, ScheduledPolicy, StepContext
from ..registry import listed


@listed(8)
@dataclass(frozen=True)
class KLoRA(ScheduledPolicy):
    """K-LoRA (arXiv 2502.18461): the sum of the K largest ``|dW|`` entries decides, with a schedule towards the style.

    ``K = r_c r_s``; the subject takes the layer if ``S_c / gamma > S_s S(t)``. Follows the official code where it
    differs from the paper: gamma is the mean over layers of ``||dW_c||_1 / ||dW_s||_1`` after layers of three times
    that mean are dropped (paper: the ratio of the totals), and the comparison is strict (paper: >=). Follows neither
    in two things: the progress is the step's, where the code counts calls of LoRA layers; and ``dW`` holds alpha and
    strength, which the code ignores: gamma takes out whatever is the same in all layers.

    Attributes:
        variant: "s": ``S = alpha t/T + beta`` with beta 0.5 (the paper); "s*": ``S = (alpha t/T + beta) mod alpha``
            with beta 0.85 alpha (the code's default, recommended for FLUX).
        alpha: slope of the schedule.
    """

    name: ClassVar[str] = "k_lora"

    variant: str = "s*"
    alpha: float = 1.5

    def __post_init__(self) -> None:
        if self.variant not in ("s", "s*"):
            raise ValueError(f"variant must be 's' or 's*', got {self.variant!r}")

    def scale(self, progress: float) -> float:
        """``S(t)``."""
        if self.variant == "s":
            return self.alpha * progress + 0.5
        return (self.alpha * progress + 0.85 * self.alpha) % self.alpha

    def prepare(self, segments: Sequence[SegmentDeltas], blocks: str = "") -> list[tuple[float, float]]:
        """Per segment ``(S_c / gamma, S_s)``."""
        masses, tops = [], []
        for segment in segments:
            k = segment.rank("subject") * segment.rank("style")
            mass, top = zip(*(segment.l1_and_top(role, k) for role in ROLES), strict=True)
            masses.append(mass)
            tops.append(top)
        # A layer that one file leaves at zero has no ratio; its winner is plain without gamma.
        ratios = [c / s for c, s in masses if c > 0 and s > 0] or [1.0]
        mean = sum(ratios) / len(ratios)
        kept = [ratio for ratio in ratios if ratio < 3 * mean]
        gamma = sum(kept) / len(kept)
        return [(c / gamma, s) for c, s in tops]

    def weights_at(self, prepared: Any, index: int, context: StepContext) -> tuple[float, float]:
        subject, style = prepared[index]
        return SUBJECT if subject > style * self.scale(context.progress) else STYLE
