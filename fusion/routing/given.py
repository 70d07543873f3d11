"""Weights of a whole model call that are known before it begins: one tensor, and no decision in any layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..layers import Joint, whole_of
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
    _used: Tensor | None = None
    _tables: dict[Any, Tensor] = field(default_factory=dict)  # that calls of one run share
    _places: list[tuple[int, int]] = field(default_factory=list)

    @classmethod
    def of_numbers(cls, weights: Mapping[str, tuple[float, float]]) -> Given:
        """From numbers (subject, style) by segment."""
        values = torch.tensor(list(weights.values()), dtype=torch.float32).reshape(-1, 1, 2)
        return cls({name: row for row, name in enumerate(weights)}, values)

    def again(self) -> Given:
        """The same for another call."""
        return Given(self.rows, self.values, _tables=self._tables)

    def pair(self, name: str, features: Tensor, emphasis: Emphasis) -> Tensor | None:
        """Both weights of a segment as they are to be used, ``[batch or 1, 2]``; None where they are not given.

        Args:
            name: of the segment.
            features: its, ``[batch, tokens, channels]``; in one call all on one device.
            emphasis: of the call.
        """
        row = self._row(name)
        if row is None or not self._fits(features):
            return None
        return self._table(features, emphasis)[row]

    def pairs(self, joint: Joint, emphasis: Emphasis) -> Tensor | None:
        """The same of neighbouring segments, ``[segments, batch or 1, 2]``."""
        rows = [self._row(segment.name) for segment in joint.segments]
        known = [row for row in rows if row is not None]
        if len(known) < len(rows) or not self._fits(joint.base):
            return None
        table, first = self._table(joint.base, emphasis), known[0]
        if known == list(range(first, first + len(known))):
            return table[first : first + len(known)]
        return torch.stack([table[row] for row in known])

    def note(self, name: str, row: int) -> None:
        """That row of the call's decisions was given."""
        place = self._row(name)
        assert place is not None
        self._places.append((row, place))

    def _row(self, name: str) -> int | None:
        """A plan may be older than the cuts of layers that hold queries, keys and values: it has one row for all."""
        row = self.rows.get(name)
        return self.rows.get(whole_of(name)) if row is None else row

    def _fits(self, features: Tensor) -> bool:
        return self.values.shape[1] in (1, features.shape[0])

    def _table(self, features: Tensor, emphasis: Emphasis) -> Tensor:
        if self._used is None:
            place = emphasis.place(features)
            if place not in self._tables:
                self._tables[place] = emphasis.of_pairs(self.values.to(features.device, non_blocking=True), features)
            self._used = self._tables[place]
        return self._used

    def blocks(self) -> list[Block]:
        """What was given, as it is recorded: before emphasis."""
        if not self._places:
            return []
        rows, places = zip(*self._places, strict=True)
        values = self.values if places == tuple(range(len(self.values))) else self.values[list(places)]
        return [Block(rows, (0, 1), values.permute(2, 0, 1)[..., None, None])]
