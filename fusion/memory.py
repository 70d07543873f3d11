"""What a run remembers from one step to the next, by layer and sample.

Everything is keyed by condition ("positive.0") and kept for the whole batch of it, so that neither packing conditions
together nor splitting a batch changes a decision; and it moves on with the step, not with the call, so that samplers
that call the model several times a step decide alike in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

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


@dataclass
class Memory:
    """Tensors of the step before (read) and of this one (written), by name and condition."""

    step: int = 0
    _before: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    _now: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    _sums: dict[str, list[Tensor]] = field(default_factory=dict)
    _means: dict[str, Tensor] = field(default_factory=dict)

    def go_to(self, step: int) -> None:
        """What was written becomes what is read once the step changes."""
        if step == self.step:
            return
        self.step = step
        self._before |= self._now
        self._now = {}
        for key, values in self._sums.items():
            self._means[key] = torch.stack(values).mean(0)
        self._sums = {}

    def before(self, name: str, key: str, like: Tensor) -> Tensor | None:
        """What was kept at the step before, if it is shaped as ``like``."""
        kept = self._before.get((name, key))
        return kept if kept is not None and kept.shape == like.shape else None

    def keep(self, name: str, key: str, values: Tensor) -> None:
        self._now[name, key] = values

    def add_to_mean(self, key: str, values: Tensor) -> None:
        """Count a layer's values ``[batch, 1 or tokens, 1 or heads]`` in the mean over layers."""
        kept = self._sums.setdefault(key, [])
        per_sample = values.mean((1, 2))
        if not kept or kept[0].shape == per_sample.shape:
            kept.append(per_sample)

    def mean(self, key: str) -> Tensor | None:
        """Mean over layers at the step before, ``[batch]``."""
        return self._means.get(key)


def together(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
