"""Columns of the routing map from decisions that are still on the device, without waiting for it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..fusion.recording import CallDecisions
from ..fusion.segments import ROLES

VALUES = 2 * len(ROLES)  # weights, then scores


@dataclass(frozen=True)
class _Copy:
    """One model call's values on their way to the host.

    Attributes:
        step: of the call.
        rows: of each decision, the layer's row.
        values: ``[decisions * VALUES]``, with the numbers that never were tensors.
        places, sizes: of each tensor, its place in ``values`` and how many numbers it has.
        flat: all tensors, one after another; ``[tensors, numbers]`` where they are of one size.
        arrived: set once ``flat`` is there; None if it is.
    """

    step: int
    rows: list[int]
    values: Tensor
    places: list[int]
    sizes: list[int]
    flat: Tensor
    arrived: Any

    def is_here(self) -> bool:
        return self.arrived is None or self.arrived.query()

    def means(self) -> Tensor:
        """``[VALUES, decisions]``: each tensor by its mean."""
        if self.flat.ndim == 2:
            self.values[self.places] = self.flat.double().mean(1)
        elif self.places:
            sizes = torch.tensor(self.sizes)
            owners = torch.arange(len(sizes)).repeat_interleave(sizes)
            sums = torch.zeros(len(sizes), dtype=torch.float64).index_add_(0, owners, self.flat.double())
            self.values[self.places] = sums / sizes
        return self.values.reshape(-1, VALUES).T


@dataclass(eq=False)
class Columns:
    """Means over batch, conditions and evaluations, as in the routing record.

    Attributes:
        layers: names, in the order they first ran.
    """

    layers: list[str] = field(default_factory=list)
    _rows: dict[str, int] = field(default_factory=dict)
    _under_way: list[_Copy] = field(default_factory=list)
    _sums: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def fetch(self, calls: Iterable[CallDecisions]) -> None:
        """Have these calls' values copied to the host; on CUDA nobody waits for that."""
        for call in calls:
            values: list[float] = []
            places: list[int] = []
            tensors: list[Tensor] = []
            for d in call.decisions:
                for value in (*(d.weights[r] for r in ROLES), *(d.scores.get(r, math.nan) for r in ROLES)):
                    if isinstance(value, Tensor):
                        places.append(len(values))
                        tensors.append(value)
                        value = math.nan
                    values.append(value)
            flat, arrived = _to_host(_together(tensors))
            rows = [self._row(d.layer) for d in call.decisions]
            held = torch.tensor(values, dtype=torch.float64)
            self._under_way.append(_Copy(call.step, rows, held, places, [t.numel() for t in tensors], flat, arrived))

    def take_arrived(self, first: int = 0) -> dict[int, Tensor]:
        """By step, from ``first`` on, ``[VALUES, layers]``; NaN where nothing was decided.

        Only steps whose values are all here.
        """
        while self._under_way and self._under_way[0].is_here():
            copy = self._under_way.pop(0)
            self._add(copy.step, copy.rows, copy.means())
        missing = {copy.step for copy in self._under_way}
        here = (step for step in self._sums if step >= first and step not in missing)
        return {step: self._sums[step][0] / self._sums[step][1] for step in here}

    def _row(self, name: str) -> int:
        if name not in self._rows:
            self._rows[name] = len(self.layers)
            self.layers.append(name)
        return self._rows[name]

    def _add(self, step: int, rows: list[int], values: Tensor) -> None:
        empty = torch.zeros(VALUES, len(self.layers), dtype=torch.float64)
        sums = self._sums.get(step, (empty, empty))
        # Layers may be met for the first time in the middle of a step.
        total, count = (torch.nn.functional.pad(s, (0, len(self.layers) - s.shape[1])) for s in sums)
        where = torch.tensor(rows)
        total.index_add_(1, where, values.nan_to_num(0.0))
        count.index_add_(1, where, (~values.isnan()).double())
        self._sums[step] = total, count


@torch.no_grad()
def _together(tensors: list[Tensor]) -> Tensor:
    # One operation for all, where they allow it: there are thousands of them in a large model.
    if tensors and len({tensor.shape for tensor in tensors}) == 1:
        return torch.stack(tensors).float().flatten(1)
    return torch.cat([tensor.float().flatten() for tensor in tensors]) if tensors else torch.zeros(0)


def _to_host(flat: Tensor) -> tuple[Tensor, Any]:
    """A copy of the values, and the event that says it is complete (None: it is)."""
    if not flat.is_cuda:
        return flat.cpu(), None
    copy = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True)
    copy.copy_(flat, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return copy, arrived
