"""Columns of the routing map from decisions that are still on the device, without waiting for it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...fusion.records import CallDecisions
from ...fusion.roles import ROLES

VALUES = 2 * len(ROLES)  # weights, then scores


@dataclass(frozen=True)
class _Copy:
    """One model call's values on their way to the host.

    Attributes:
        step: of the call.
        rows: ``[decisions]``, of each decision the layer's row.
        flat: all tensors, one after another; ``[tensors, numbers]`` where they are of one size.
        arrived: set once ``flat`` is there; None if it is.
        held: where not every value is a tensor of one size: ``[decisions * VALUES]`` numbers that never were tensors.
        places, sizes: then of each tensor, its place in ``held`` and how many numbers it has.
    """

    step: int
    rows: Tensor
    flat: Tensor
    arrived: Any
    held: Tensor | None = None
    places: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()

    def is_here(self) -> bool:
        return self.arrived is None or self.arrived.query()

    def means(self) -> Tensor:
        """``[VALUES, decisions]``: each tensor by its mean."""
        if self.held is None:
            values = self.flat.double().mean(1)
        else:
            values, sizes = self.held, torch.tensor(self.sizes, dtype=torch.long)
            owners = torch.arange(len(sizes)).repeat_interleave(sizes)
            sums = torch.zeros(len(sizes), dtype=torch.float64).index_add_(0, owners, self.flat.double())
            values[list(self.places)] = sums / sizes
        return values.reshape(-1, VALUES).T


@dataclass(eq=False)
class Columns:
    """Means over batch, conditions and evaluations, as in the routing record.

    Attributes:
        layers: names, in the order they first ran.
    """

    layers: list[str] = field(default_factory=list)
    _rows: dict[str, int] = field(default_factory=dict)
    _under_way: list[_Copy] = field(default_factory=list)
    _last: tuple[list[str], Tensor] = field(default_factory=lambda: ([], torch.zeros(0, dtype=torch.long)))
    _sums: dict[int, Tensor] = field(default_factory=dict)  # by step [sum and count, VALUES, layers]

    def fetch(self, calls: Iterable[CallDecisions]) -> None:
        """Have these calls' values copied to the host; on CUDA nobody waits for that."""
        for call in calls:
            values = [v for d in call.decisions for v in _values_of(d.weights, d.scores)]
            rows = self._rows_of([d.layer for d in call.decisions])
            together = _together(values)
            if together is not None:
                self._under_way.append(_Copy(call.step, rows, *_to_host(together)))
            else:
                self._under_way.append(_in_parts(call.step, rows, values))

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

    def _rows_of(self, names: list[str]) -> Tensor:
        # Nearly always the layers of the call before, in the same order.
        if names != self._last[0]:
            for name in names:
                if name not in self._rows:
                    self._rows[name] = len(self.layers)
                    self.layers.append(name)
            self._last = names, torch.tensor([self._rows[name] for name in names])
        return self._last[1]

    def _add(self, step: int, rows: Tensor, values: Tensor) -> None:
        if step not in self._sums:
            self._sums[step] = torch.zeros(2, VALUES, len(self.layers), dtype=torch.float64)
        both = self._sums[step]
        # Layers may be met for the first time in the middle of a step.
        if both.shape[2] < len(self.layers):
            both = self._sums[step] = torch.nn.functional.pad(both, (0, len(self.layers) - both.shape[2]))
        known = ~values.isnan()
        both.index_add_(2, rows, torch.stack([values.nan_to_num(0.0), known.double()]))


def _values_of(weights: Mapping[str, Any], scores: Mapping[str, Any]) -> tuple[Any, ...]:
    first, second = ROLES
    return weights[first], weights[second], scores.get(first, math.nan), scores.get(second, math.nan)


@torch.no_grad()
def _together(values: list[Any]) -> Tensor | None:
    """All values as one tensor ``[values, numbers]``, None if not all are tensors of one size.

    One operation for all, not even a look at each: there are thousands of them in a large model.
    """
    try:
        return torch.stack(values).float().flatten(1)
    except (TypeError, RuntimeError):
        return None


@torch.no_grad()
def _in_parts(step: int, rows: Tensor, values: list[Any]) -> _Copy:
    places = tuple(i for i, value in enumerate(values) if isinstance(value, Tensor))
    tensors = [values[place].float().flatten() for place in places]
    held = torch.tensor([math.nan if isinstance(v, Tensor) else v for v in values], dtype=torch.float64)
    flat = torch.cat(tensors) if tensors else torch.zeros(0)
    return _Copy(step, rows, *_to_host(flat), held, places, tuple(tensor.numel() for tensor in tensors))


def _to_host(flat: Tensor) -> tuple[Tensor, Any]:
    """A copy of the values, and the event that says it is complete (None: it is)."""
    if not flat.is_cuda:
        return flat.cpu(), None
    copy = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True)
    copy.copy_(flat, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return copy, arrived
