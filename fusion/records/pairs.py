"""The weights of one condition in one model call, by layer, as they lie in what the call decided.

Nothing is made for a layer until somebody asks for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from ..layers import Batch, Weight
from .decisions import WEIGHTS, CallDecisions

Pair = tuple[Weight, Weight]
Place = tuple[str, int]  # a segment's name, and how often it had run in the call before


class Pairs(Sequence[Pair | None]):
    """``(subject, style)`` by row of a plan, None where the layer did not run in that call; numbers, or tensors
    ``[batch, 1, heads]`` of the condition's own samples.

    Args:
        call: read back.
        part: which of its conditions.
        rows: by row of the plan, the call's; None where it has none. None for the same rows.
    """

    def __init__(self, call: CallDecisions, part: int, rows: tuple[int | None, ...] | None) -> None:
        self._rows, self._length = rows, len(call.layers) if rows is None else len(rows)
        self._numbers = call.numbers
        self._blocks = [
            (block.rows, block.kinds, _of_condition(block.values, part, call.batch))
            for block in (block.of(WEIGHTS) for block in call.blocks)
            if block.kinds
        ]

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, row: int) -> Pair | None: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[Pair | None]: ...
    def __getitem__(self, row: int | slice) -> Any:
        return self._all[row]

    def __iter__(self) -> Iterator[Pair | None]:
        return iter(self._all)

    def table(self) -> Tensor | None:
        """See :func:`table_of`."""
        if self._rows is not None or len(self._blocks) != 1:
            return None
        rows, kinds, values = self._blocks[0]
        if rows != tuple(range(self._length)) or kinds != WEIGHTS or values.shape[3:] != (1, 1):
            return None
        return values[..., 0, 0].permute(1, 2, 0)

    @property
    def _all(self) -> tuple[Pair | None, ...]:
        if "_made" not in self.__dict__:
            self._made = tuple(self._make())
        return self._made

    def _make(self) -> Iterator[Pair | None]:
        found: list[list[Weight]] = self._numbers[list(WEIGHTS)].tolist()
        for rows, kinds, values in self._blocks:
            for kind, each in zip(kinds, values.unbind(), strict=True):
                for row, value in zip(rows, each.unbind(), strict=True):
                    found[kind][row] = value
        pairs = list(zip(*found, strict=True))
        yield from pairs if self._rows is None else (None if row is None else pairs[row] for row in self._rows)


def table_of(pairs: Sequence[Pair | None]) -> Tensor | None:
    """Weights of all rows ``[rows, batch, 2]`` float32; None unless they are a number for each sample of each."""
    if isinstance(pairs, Pairs):
        return pairs.table()
    try:
        values = torch.stack([weight for pair in pairs for weight in pair])  # type: ignore[union-attr, misc]
    except (TypeError, RuntimeError):
        return None
    return values.unflatten(0, (-1, 2))[..., 0, 0].transpose(1, 2) if values.shape[2:] == (1, 1) else None


def pairs_of(call: CallDecisions, places: tuple[Place, ...], layers: tuple[Place, ...]) -> list[Pairs]:
    """Of each condition of a call.

    Args:
        call: read back.
        places: of its decisions.
        layers: of the plan's rows.
    """
    rows: tuple[int | None, ...] | None = None
    if places != layers:
        own = {place: row for row, place in enumerate(places)}
        rows = tuple(own.get(place) for place in layers)
    return [Pairs(call, part, rows) for part in range(len(call.batch.keys))]


def _of_condition(values: Tensor, part: int, batch: Batch) -> Tensor:
    """``[kinds, rows, batch, 1, heads]`` of one condition; the mean where the layer's batch is not made of theirs."""
    parts = batch.parts(values.movedim(2, 0))
    return values.mean(2, keepdim=True) if parts is None else parts[part].movedim(0, 2)
