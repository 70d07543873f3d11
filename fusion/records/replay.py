"""A plan's decisions, made again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..layers import Batch, Weight, whole_of
from ..policies import Policy
from .pairs import Pair, table_of
from .plan import Plan, PlannedCall


@dataclass(frozen=True)
class Replay(Policy):
    """Decides what a plan says."""

    name: ClassVar[str] = "plan"

    plan: Plan

    @property
    def own_emphasis(self) -> float:
        return float(self.plan.policy.get("emphasis", 1.0))

    @property
    def fades(self) -> bool:
        return bool(self.plan.policy.get("presence", False))

    def settings(self) -> dict[str, Any]:
        return {"policy": self.name, "plan": self.plan.digest, "of": self.plan.policy}


class ReplayedCall:
    """One model call as planned: the planned calls of its conditions, side by side."""

    def __init__(self, plan: Plan, planned: Sequence[PlannedCall]) -> None:
        self._planned, self._all = planned, plan.layers
        self._rows: dict[str, list[int]] = {}
        for row, name in enumerate(plan.layers):
            self._rows.setdefault(name, []).append(row)
        self._called: dict[str, int] = {}

    def table(self, batch: Batch) -> Tensor | None:
        """All weights ``[layers, rows, 2]`` float32 on the host; None unless each layer runs once, with a number for
        each sample."""
        if len(self._rows) < len(self._all):
            return None
        parts = [table_of(call.weights) for call in self._planned]
        if any(part is None for part in parts) or len({part.shape for part in parts if part is not None}) > 1:
            return None
        by_row = [part.transpose(0, 1) for part in parts if part is not None]
        if batch.only is not None:
            by_row = [part[batch.only % len(part)][None] for part in by_row]
        elif any(len(part) % batch.repeats for part in by_row):
            return None
        return batch.joined(by_row).transpose(0, 1)

    def weights(self, name: str, base: Tensor, batch: Batch) -> Pair:
        """Weights of a segment for features ``[rows, tokens, channels]``; 1 where the plan does not know it.

        A plan may be older than the cuts of layers that hold queries, keys and values: it has one row for all, and of
        all their heads.
        """
        called = self._called.get(name, 0)
        self._called[name] = called + 1
        known = self._rows.get(name)
        rows = (self._rows.get(whole_of(name), []) if known is None else known)[: called + 1]
        pairs = [
            next((p for row in reversed(rows) if (p := call.weights[row]) is not None), None) for call in self._planned
        ]
        if any(pair is None for pair in pairs):
            return 1.0, 1.0
        subject, style = (
            _side_by_side([pair[role] for pair in pairs if pair is not None], base, batch) for role in range(2)
        )
        return subject, style


def _side_by_side(weights: Sequence[Weight], base: Tensor, batch: Batch) -> Weight:
    """The weights of several conditions as one for their joined batch."""
    first = weights[0]
    if isinstance(first, float) and all(isinstance(w, float) and w == first for w in weights):
        return first
    rows, mixed = divmod(base.shape[0], len(weights))
    tokens = base.shape[1]
    parts = [_sized(w, 1 if mixed else rows, tokens, batch.only or 0) for w in weights]
    tokens, heads = (max(part.shape[i] for part in parts) for i in (1, 2))
    spread = [_spread(part, tokens, heads) for part in parts]
    return (torch.stack(spread).mean(0) if mixed else batch.joined(spread)).to(base.device)


def _spread(weight: Tensor, tokens: int, heads: int) -> Tensor:
    """A weight for every token and head where another condition has that."""
    return weight if weight.shape[1:] == (tokens, heads) else weight.expand(-1, tokens, heads)


def _sized(weight: Weight, rows: int, tokens: int, first: int) -> Tensor:
    """A weight for other rows, or another number of tokens, than it was planned for."""
    if not isinstance(weight, Tensor):
        return torch.full((rows, 1, 1), weight)
    if weight.shape[1] not in (1, tokens):
        weight = weight.mean(1, keepdim=True)
    return weight if weight.shape[0] == rows else weight[torch.arange(first, first + rows) % weight.shape[0]]
