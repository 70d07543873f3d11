"""Weights of a whole model call that are known before it begins: one tensor, and no decision in any layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..records import Block
from .emphasis import Emphasis


@dataclass(eq=False)
class Given:
    """For one call.

    Attributes:
        rows: of each segment in ``values``.
        values: ``[segments, batch or 1, 2]`` float32, on the host.
    """

    rows: Mapping[str, int]
    values: Tensor
    _used: tuple[Tensor, ...] = ()
    _places: list[tuple[int, int]] = field(default_factory=list)

    @classmethod
    def of_numbers(cls, weights: Mapping[str, tuple[float, float]]) -> Given:
        """From numbers (subject, style) by segment."""
        values = torch.tensor(list(weights.values()), dtype=torch.float32).reshape(-1, 1, 2)
        return cls({name: row for row, name in enumerate(weights)}, values)

    def again(self) -> Given:
        """The same for another call."""
        return Given(self.rows, self.values)

    def pair(self, name: str, features: Tensor, emphasis: Emphasis) -> Tensor | None:
        """Both weights of a segment as they are to be used, ``[batch or 1, 2]``; None where they are not given.

        Args:
            name: of the segment.
            features: its, ``[batch, tokens, channels]``; in one call all on one device.
            emphasis: of the call.
        """
        row = self.rows.get(name)
        if row is None or self.values.shape[1] not in (1, features.shape[0]):
            return None
        if not self._used:
            self._used = emphasis.of_pairs(self.values.to(features.device, non_blocking=True), features).unbind()
        used = self._used[row]
        return used if len(used) in (1, features.shape[0]) else None

    def note(self, name: str, row: int) -> None:
        """That row of the call's decisions was given."""
        self._places.append((row, self.rows[name]))

    def blocks(self) -> list[Block]:
        """What was given, as it is recorded: before emphasis."""
        if not self._places:
            return []
        rows, places = zip(*self._places, strict=True)
        return [Block(rows, (0, 1), self.values[list(places)].permute(2, 0, 1)[..., None, None])]
