"""Columns of the routing map from decisions that are still on the device, without waiting for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ...fusion.records import SCORES, WEIGHTS, CallDecisions, Rows

SHOWN = (*WEIGHTS, *SCORES)  # the first of the kinds
VALUES = len(SHOWN)


@dataclass(frozen=True)
class _Copy:
    """One model call's values on their way to the host.

    Attributes:
        call: with the values where they will be.
        rows: ``[decisions]``, of each decision the layer's row.
        arrived: set once they are there; None if they are.
    """

    call: CallDecisions
    rows: Tensor
    arrived: Any

    def is_here(self) -> bool:
        return self.arrived is None or self.arrived.query()


@dataclass(eq=False)
class Columns:
    """Means over batch, conditions and evaluations, as in the routing record."""

    _rows: Rows = field(default_factory=Rows)
    _under_way: list[_Copy] = field(default_factory=list)
    _sums: dict[int, Tensor] = field(default_factory=dict)  # by step [sum and count, VALUES, layers]

    @property
    def layers(self) -> list[str]:
        """Names, in the order they first ran."""
        return self._rows.layers

    def fetch(self, calls: Iterable[CallDecisions]) -> None:
        """Have these calls' values copied to the host; on CUDA nobody waits for that."""
        for call in calls:
            shown = replace(call, blocks=tuple(block.of(SHOWN) for block in call.blocks))
            arrived, values = _to_host([block.values for block in shown.blocks])
            self._under_way.append(_Copy(shown.holding(values), self._rows.of(call.layers), arrived))

    def take_arrived(self, first: int = 0) -> dict[int, Tensor]:
        """By step, from ``first`` on, ``[VALUES, layers]``; NaN where nothing was decided.

        Only steps whose values are all here.
        """
        while self._under_way and self._under_way[0].is_here():
            copy = self._under_way.pop(0)
            self._add(copy.call.step, copy.rows, copy.call.means()[:VALUES])
        missing = {copy.call.step for copy in self._under_way}
        here = (step for step in self._sums if step >= first and step not in missing)
        return {step: self._sums[step][0] / self._sums[step][1] for step in here}

    def _add(self, step: int, rows: Tensor, values: Tensor) -> None:
        if step not in self._sums:
            self._sums[step] = torch.zeros(2, VALUES, len(self.layers), dtype=torch.float64)
        both = self._sums[step]
        # Layers may be met for the first time in the middle of a step.
        if both.shape[2] < len(self.layers):
            both = self._sums[step] = torch.nn.functional.pad(both, (0, len(self.layers) - both.shape[2]))
        known = values == values  # noqa: PLR0124 - NaN is not
        both.index_add_(2, rows, torch.stack([values.nan_to_num(0.0), known.double()]))


def _to_host(tensors: list[Tensor]) -> tuple[Any, list[Tensor]]:
    """Copies of the values, and the event that says they are complete (None: they are)."""
    if not any(tensor.is_cuda for tensor in tensors):
        return None, [tensor.cpu() for tensor in tensors]
    copies = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
    for copy, tensor in zip(copies, tensors, strict=True):
        copy.copy_(tensor, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return arrived, copies
