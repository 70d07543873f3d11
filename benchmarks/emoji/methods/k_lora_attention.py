"""K-LoRA as its authors use it: on files that touch attention alone; everywhere else both LoRAs are added."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar

from torch import Tensor

SINGLE = re.compile(r"\.single_blocks\.\d+\.linear1\[(\d+):")


def of_attention(name: str, down: Tensor) -> bool:
    """Whether a segment of a FLUX-shaped model makes or merges queries, keys and values.

    Args:
        name: of the segment. A single block's `linear1` makes them and the MLP's input at once, in this order.
        down: one of its LoRAs' ``[rank, in]``.
    """
    single = SINGLE.search(name)
    return int(single[1]) < 3 * down.shape[1] if single else "attn" in name


@cache
def k_lora_on_attention() -> Any:
    """The class of that policy."""
    from lora_conductor.fusion.layers import SegmentDeltas
    from lora_conductor.fusion.policies import KLoRA, StepContext

    class KLoRAOnAttention(KLoRA):
        name: ClassVar[str] = "k_lora_on_attention"

        def prepare(self, segments: Sequence[SegmentDeltas], blocks: str = "") -> Any:
            chosen = [i for i, each in enumerate(segments) if of_attention(each.name, each.down["style"])]
            prepared = super().prepare([segments[i] for i in chosen], blocks)
            return dict(zip(chosen, prepared, strict=True))

        def weights_at(self, prepared: Any, index: int, context: StepContext) -> tuple[float, float]:
            return super().weights_at(prepared, index, context) if index in prepared else (1.0, 1.0)

    return KLoRAOnAttention
