"""Which prompts a model call computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Which conditions a model call computes, in the order of its batch.

    Attributes:
        keys: one a condition; equal parts of the batch belong to them.
        followed: the condition the others may follow.
    """

    keys: tuple[str, ...] = ("",)
    followed: str = ""

    def parts(self, values: Tensor) -> tuple[Tensor, ...] | None:
        """The values of each condition, or None where the layer's own batch is not made of equal parts."""
        if values.shape[0] % len(self.keys):
            return None
        return values.chunk(len(self.keys))


def together(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
