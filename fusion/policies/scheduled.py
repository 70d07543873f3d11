"""Policies that decide from weight statistics and the step: K-LoRA, EST-LoRA, block masks, chance."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..layers.segment import SegmentDeltas
from ..roles import ROLES
from .base import ScheduledPolicy, StepContext

SUBJECT = (1.0, 0.0)
STYLE = (0.0, 1.0)


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

    def prepare(self, segments: Sequence[SegmentDeltas]) -> list[tuple[float, float]]:
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

    def prepare(self, segments: Sequence[SegmentDeltas]) -> list[tuple[float, float]]:
        energies = [(s.energy("subject"), s.energy("style")) for s in segments]
        balance = sum(c for c, _ in energies) / max(sum(s for _, s in energies), 1e-30)
        return [(c / max(balance, 1e-30), s) for c, s in energies]

    def weights_at(self, prepared: Any, index: int, context: StepContext) -> tuple[float, float]:
        subject, style = prepared[index]
        return SUBJECT if subject >= (self.alpha * context.progress + 1 - self.discrepancy) * style else STYLE


@dataclass(frozen=True)
class BlockMask(ScheduledPolicy):
    """Fixed roles of blocks: B-LoRA (arXiv 2403.14572) for SDXL, SplitFlux (arXiv 2511.15258) for FLUX.

    SDXL: content in ``output_blocks.0.1`` (with ``input_blocks.8.1``), style in ``output_blocks.1.1``. FLUX: content
    in single blocks 0-9, style in the later ones. Blocks with neither role keep both LoRAs.
    """

    name: ClassVar[str] = "block_mask"

    SUBJECT_BLOCKS: ClassVar[re.Pattern] = re.compile(r"\.(output_blocks\.0\.1|input_blocks\.8\.1|single_blocks\.\d)\.")
    STYLE_BLOCKS: ClassVar[re.Pattern] = re.compile(r"\.(output_blocks\.1\.1|single_blocks\.\d\d+)\.")

    def prepare(self, segments: Sequence[SegmentDeltas]) -> list[tuple[float, float]]:
        return [self.role(segment.name) for segment in segments]

    def role(self, name: str) -> tuple[float, float]:
        if self.SUBJECT_BLOCKS.search(name):
            return SUBJECT
        return STYLE if self.STYLE_BLOCKS.search(name) else (1.0, 1.0)

    def weights_at(self, prepared: Any, index: int, context: StepContext) -> tuple[float, float]:
        return prepared[index]


@dataclass(frozen=True)
class Chance(ScheduledPolicy):
    """A control: every layer and step is given away by chance, the same on every machine for a seed."""

    name: ClassVar[str] = "random"

    seed: int = 0
    subject_share: float = 0.5

    def prepare(self, segments: Sequence[SegmentDeltas]) -> list[str]:
        return [segment.name for segment in segments]

    def weights_at(self, prepared: Any, index: int, context: StepContext) -> tuple[float, float]:
        digest = hashlib.sha256(f"{self.seed}:{prepared[index]}:{context.step}".encode()).digest()
        return SUBJECT if int.from_bytes(digest[:4], "big") < self.subject_share * 2**32 else STYLE
