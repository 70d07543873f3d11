"""Blocks with fixed roles."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ...layers import SegmentDeltas
from ..base import STYLE, SUBJECT, ScheduledPolicy, StepContext
from ..registry import listed


@listed(18)
@dataclass(frozen=True)
class BlockMask(ScheduledPolicy):
    """Fixed roles of blocks: B-LoRA (arXiv 2403.14572) for SDXL, SplitFlux (arXiv 2511.15258) for FLUX.

    SDXL: content in ``output_blocks.0.1`` (with ``input_blocks.8.1``), style in ``output_blocks.1.1``. FLUX: content
    in single blocks 0-9, style in the later ones. Blocks with neither role keep both LoRAs, and so do all blocks of
    other models, whatever they are called.
    """

    name: ClassVar[str] = "block_mask"

    KNOWN: ClassVar[dict[str, tuple[re.Pattern[str], re.Pattern[str]]]] = {
        "SDXL": (re.compile(r"\.(output_blocks\.0\.1|input_blocks\.8\.1)\."), re.compile(r"\.output_blocks\.1\.1\.")),
        "FLUX": (re.compile(r"\.single_blocks\.\d\."), re.compile(r"\.single_blocks\.\d\d+\.")),
    }
    """By whose blocks they are, those of the subject and those of the style."""

    def prepare(self, segments: Sequence[SegmentDeltas], blocks: str = "") -> list[tuple[float, float]]:
        return [self.role(segment.name, blocks) for segment in segments]

    def role(self, name: str, blocks: str) -> tuple[float, float]:
        """Weights (subject, style) of a segment in a model with those blocks."""
        if blocks not in self.KNOWN:
            return (1.0, 1.0)
        subject, style = self.KNOWN[blocks]
        if subject.search(name):
            return SUBJECT
        return STYLE if style.search(name) else (1.0, 1.0)

    def weights_at(self, prepared: Any, index: int, context: StepContext) -> tuple[float, float]:
        return prepared[index]
