"""What was decided in the model calls of a run.

Of each call all values lie together, so that a model with thousands of them asks no more of the device, or of the host,
than a small one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ..layers import Batch, Weight
from ..roles import ROLES

KINDS = (*(("weights", role) for role in ROLES), *(("scores", role) for role in ROLES), ("log_ratio", ""))
WEIGHTS, SCORES, LOG_RATIO = (0, 1), (2, 3), 4  # places among KINDS


@dataclass
class Decision:
    """What was decided in one call of one segment; tensors ``[batch, 1, heads]`` stay on the device.

    Attributes:
        layer: the segment's name.
        scores: of both roles; empty where nothing was measured.
        log_ratio: what the policy was given of them, steadied.
        weights: of both roles.
    """

    layer: str
    scores: dict[str, Tensor]
    weights: dict[str, Weight]
    log_ratio: Tensor | None = None

    def values(self) -> tuple[Weight | None, ...]:
        """In the order of ``KINDS``."""
        scores, weights = self.scores, self.weights
        return (*(weights[role] for role in ROLES), *(scores.get(role) for role in ROLES), self.log_ratio)


@dataclass(frozen=True)
class Block:
    """Values of one shape: of some rows (decisions of a call), the same kinds each.

    Attributes:
        rows: places among the call's decisions.
        kinds: places in ``KINDS``.
        values: ``[kinds, rows, batch, 1, heads]``.
    """

    rows: tuple[int, ...]
    kinds: tuple[int, ...]
    values: Tensor

    def of(self, kinds: Sequence[int]) -> Block:
        """Of these kinds alone, as far as they are here."""
        here = [i for i, kind in enumerate(self.kinds) if kind in kinds]
        if len(here) == len(self.kinds):
            return self
        start, stop = (here[0], here[-1] + 1) if here else (0, 0)
        assert here == list(range(start, stop))
        return Block(self.rows, self.kinds[start:stop], self.values[start:stop])


@dataclass(frozen=True)
class CallDecisions:
    """What was decided in one model call.

    Attributes:
        step: of the call.
        batch: what it computed.
        evaluations: of each condition, how often it had been computed in this step before.
        layers: names of the decided segments in the order they ran; one that ran twice is there twice.
        blocks: the values that are tensors; they stay on the device until they are read back.
        numbers: ``[KINDS, decisions]`` float64, on the host: the others; NaN for tensors and for what there is not.
    """

    step: int
    batch: Batch
    evaluations: tuple[int, ...]
    layers: tuple[str, ...]
    blocks: tuple[Block, ...]
    numbers: Tensor = field(repr=False)

    @classmethod
    def of(
        cls, step: int, batch: Batch, evaluations: tuple[int, ...], decisions: Sequence[Decision | str], *more: Block
    ) -> CallDecisions:
        """From decisions one by one.

        Args:
            decisions: in the order they were made; the segment's name where ``more`` has it.
            more: with their rows among all of them.
        """
        columns = [() if isinstance(d, str) else d.values() for d in decisions]
        table = torch.full((len(KINDS), len(columns)), math.nan, dtype=torch.float64)
        if any(isinstance(v, float) for column in columns for v in column):
            blank = (None,) * len(KINDS)
            numbers = [[v if isinstance(v, float) else math.nan for v in column or blank] for column in columns]
            table = torch.tensor(numbers, dtype=torch.float64).T
        names = tuple(d if isinstance(d, str) else d.layer for d in decisions)
        return cls(step, batch, evaluations, names, (*more, *_blocks(columns)), table)

    def means(self) -> Tensor:
        """``[KINDS, decisions]`` float64, each tensor by its mean; for calls that were read back."""
        means = self.numbers.clone()
        for block in self.blocks:
            rows = slice(None) if len(block.rows) == len(self.layers) else list(block.rows)
            means[block.kinds[0] : block.kinds[-1] + 1, rows] = block.values.flatten(2).double().mean(2)
        return means

    def values(self) -> list[tuple[Weight | None, ...]]:
        """Of each decision, in the order of ``KINDS``; None for what there is not."""
        numbers = self.numbers.T.tolist()
        found: list[list[Weight | None]] = [[None if math.isnan(v) else v for v in column] for column in numbers]
        for block in self.blocks:
            for kind, each in zip(block.kinds, block.values.unbind(), strict=True):
                for row, value in zip(block.rows, each.unbind(), strict=True):
                    found[row][kind] = value
        return [tuple(column) for column in found]

    def holding(self, values: Iterable[Tensor]) -> CallDecisions:
        """The same with the values of its blocks elsewhere."""
        return replace(self, blocks=tuple(replace(b, values=v) for b, v in zip(self.blocks, values, strict=True)))


@torch.no_grad()
def _blocks(columns: Sequence[Sequence[Any]]) -> Iterator[Block]:
    """The tensors among the values of decisions, those of one shape together."""
    rows = tuple(row for row, column in enumerate(columns) if column)
    if not rows:
        return
    try:  # nearly always all are tensors of one shape: not even a look at each, there are thousands
        values = torch.stack([value for column in columns for value in column]).float()
    except (TypeError, RuntimeError):
        yield from _blocks_by_shape(columns)
    else:
        values = values.unflatten(0, (len(rows), len(KINDS))).transpose(0, 1)
        yield Block(rows, tuple(range(len(KINDS))), values)


def _blocks_by_shape(columns: Sequence[Sequence[Any]]) -> Iterator[Block]:
    found: dict[Any, list[int]] = {}
    for row, column in enumerate(columns):
        key = tuple((v.shape, v.device) if isinstance(v, Tensor) else None for v in column)
        found.setdefault(key, []).append(row)
    for key, rows in found.items():
        for shape, run in groupby(enumerate(key), lambda place: place[1]):
            kinds = tuple(kind for kind, _ in run)
            if shape is not None:
                values = torch.stack([columns[row][kind] for kind in kinds for row in rows])
                yield Block(tuple(rows), kinds, values.float().unflatten(0, (len(kinds), len(rows))))


def merged(calls: Sequence[CallDecisions], batch: Batch) -> CallDecisions:
    """What was decided of each latent in a call of its own, as one call of all of them.

    Layers that one latent did not run, as an expert that none of its tokens were sent to, stand at the mean of the
    others.

    Args:
        calls: one a row of the batch's parts, condition by condition.
        batch: of them all.
    """
    found: dict[tuple[str, int], list[tuple[Weight | None, ...] | None]] = {}
    for i, call in enumerate(calls):
        seen: dict[str, int] = {}
        for name, values in zip(call.layers, call.values(), strict=True):
            place = name, seen.get(name, 0)
            seen[name] = place[1] + 1
            found.setdefault(place, [None] * len(calls))[i] = values
    decisions = [_merged(name, decided, batch) for (name, _), decided in found.items()]
    evaluations = tuple(call.evaluations[0] for call in calls[:: len(calls) // len(batch.keys)])
    return CallDecisions.of(calls[0].step, batch, evaluations, decisions)


def _merged(layer: str, decided: Sequence[tuple[Weight | None, ...] | None], batch: Batch) -> Decision:
    known = list(zip(*(values for values in decided if values is not None), strict=True))

    def rows(kind: int) -> Any:
        values = known[kind]
        if any(value is None for value in values):
            return None
        if all(isinstance(value, float) and value == values[0] for value in values):
            return values[0]
        tensors = [value if isinstance(value, Tensor) else torch.full((1, 1, 1), value) for value in values]
        mean = torch.stack(tensors).mean(0)
        given = iter(tensors)
        in_order = [mean if values is None else next(given) for values in decided]
        each = len(in_order) // len(batch.keys)
        return batch.joined([torch.cat(in_order[i : i + each]) for i in range(0, len(in_order), each)])

    scores = {role: rows(kind) for role, kind in zip(ROLES, SCORES, strict=True)}
    measured = all(score is not None for score in scores.values())
    weights = {role: rows(kind) for role, kind in zip(ROLES, WEIGHTS, strict=True)}
    return Decision(layer, scores if measured else {}, weights, rows(LOG_RATIO))


def read_back(calls: Sequence[CallDecisions]) -> list[CallDecisions]:
    """The same on the host: one copy for all that is on a device."""
    tensors = [block.values for call in calls for block in call.blocks]
    parts = iter(_on_host(tensors))
    return [call.holding([next(parts) for _ in call.blocks]) for call in calls]


def _on_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """In the same order."""
    found = list(tensors)
    for device in dict.fromkeys(tensor.device for tensor in tensors if tensor.device.type != "cpu"):
        here = [(i, tensor) for i, tensor in enumerate(tensors) if tensor.device == device]
        flat = torch.cat([tensor.flatten() for _, tensor in here]).cpu()
        for (i, tensor), part in zip(here, flat.split([tensor.numel() for _, tensor in here]), strict=True):
            found[i] = part.reshape(tensor.shape)
    return found


def in_order(calls: Sequence[CallDecisions]) -> list[CallDecisions]:
    """The calls as one device makes them, one after the other, whichever of several came first.

    Core takes the last prompt of its lists first: negative ones before positive ones, later ones before earlier ones.
    """

    def place(call: CallDecisions) -> tuple[Any, ...]:
        group, _, index = call.batch.keys[0].rpartition(".")
        return call.step, bool(group), call.evaluations, group, -int(index) if group else 0

    return sorted(calls, key=place)


class Rows:
    """Rows of a table that has one for each segment, in the order they were first met.

    Attributes:
        layers: names.
    """

    def __init__(self) -> None:
        self.layers: list[str] = []
        self._rows: dict[str, int] = {}
        self._last: tuple[tuple[str, ...], Tensor] = ((), torch.zeros(0, dtype=torch.long))

    def of(self, names: tuple[str, ...]) -> Tensor:
        """``[names]``; new names get new rows."""
        # Nearly always the layers of the call before.
        if names != self._last[0]:
            for name in names:
                if name not in self._rows:
                    self._rows[name] = len(self.layers)
                    self.layers.append(name)
            self._last = names, torch.tensor([self._rows[name] for name in names], dtype=torch.long)
        return self._last[1]


def log_ratios_of(calls: Sequence[CallDecisions]) -> dict[str, float | None]:
    """By segment, the mean of what was measured so far; None where nothing was."""
    table = Rows()
    rows = [table.of(call.layers) for call in calls]
    total, count = torch.zeros(2, len(table.layers), dtype=torch.float64)
    for call, at in zip(calls, rows, strict=True):
        means = call.means()[LOG_RATIO]
        for block in call.blocks:
            if LOG_RATIO in block.kinds:
                measured = list(block.rows)
                total.index_add_(0, at[measured], means[measured])
                count.index_add_(0, at[measured], torch.ones(len(measured), dtype=torch.float64))
    found = (total / count).tolist()
    return {
        name: mean if times else None for name, mean, times in zip(table.layers, found, count.tolist(), strict=True)
    }
