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
