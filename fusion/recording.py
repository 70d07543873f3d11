"""From the decisions of a run's model calls to its record and its plan."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .memory import Batch
from .plan import Plan, PlannedCall
from .record import RoutingRecord
from .router import Decision
from .segment import Weight
from .segments import ROLES


@dataclass
class CallDecisions:
    """What was decided in one model call; tensors still on the device.

    Attributes:
        step: of the call.
        batch: what it computed.
        evaluations: of each condition, how often it had been computed in this step before.
        decisions: in the order they were made.
    """

    step: int
    batch: Batch
    evaluations: tuple[int, ...]
    decisions: list[Decision]


def read_back(calls: Sequence[CallDecisions]) -> list[CallDecisions]:
    """The same on the host: one copy for all."""
    tensors = [
        value
        for call in calls
        for decision in call.decisions
        for value in (*decision.scores.values(), *decision.weights.values(), decision.log_ratio)
        if isinstance(value, Tensor)
    ]
    if not tensors:
        return list(calls)
    flat = torch.cat([t.detach().float().flatten() for t in tensors]).cpu()
    parts = iter(
        part.reshape(t.shape) for part, t in zip(flat.split([t.numel() for t in tensors]), tensors, strict=True)
    )

    def on_host(values: dict[str, Any]) -> dict[str, Any]:
        return {role: next(parts) if isinstance(value, Tensor) else value for role, value in values.items()}

    return [
        CallDecisions(
            call.step,
            call.batch,
            call.evaluations,
            [
                Decision(d.layer, on_host(d.scores), on_host(d.weights), on_host({"": d.log_ratio})[""])
                for d in call.decisions
            ],
        )
        for call in calls
    ]


def record_of(calls: Sequence[CallDecisions], sigmas: tuple[float, ...], header: dict[str, Any]) -> RoutingRecord:
    """Means over the batch, over conditions and over the evaluations of a step."""
    steps = max(1, len(sigmas) - 1)
    layers = list(dict.fromkeys(d.layer for call in calls for d in call.decisions))
    index = {name: i for i, name in enumerate(layers)}
    total = torch.zeros(4, len(layers), steps, dtype=torch.float64)
    count = torch.zeros(4, len(layers), steps, dtype=torch.float64)
    for call in calls:
        for d in call.decisions:
            values = torch.tensor(
                [_mean(d.scores.get(role, math.nan)) for role in ROLES] + [_mean(d.weights[role]) for role in ROLES],
                dtype=torch.float64,
            )
            total[:, index[d.layer], call.step] += values.nan_to_num(0.0)
            count[:, index[d.layer], call.step] += ~values.isnan()
    mean = total / count
    return RoutingRecord(**header, sigmas=sigmas, layers=tuple(layers), scores=mean[:2], weights=mean[2:])


def log_ratios_of(calls: Sequence[CallDecisions]) -> dict[str, float | None]:
    """By segment, the mean of what was measured so far; None where nothing was."""
    found: dict[str, list[float]] = {}
    for call in calls:
        for d in call.decisions:
            values = found.setdefault(d.layer, [])
            if d.log_ratio is not None:
                values.append(_mean(d.log_ratio))
    return {name: sum(values) / len(values) if values else None for name, values in found.items()}


def plan_of(
    calls: Sequence[CallDecisions],
    sigmas: tuple[float, ...],
    header: dict[str, Any],
    frozen: Mapping[str, tuple[float, float]] | None = None,
) -> Plan:
    """What was decided, for every sample apart; and, if it was frozen, at what weights."""
    planned: list[PlannedCall] = []
    layers = _layers(calls)
    rows = {place: row for row, place in enumerate(layers)}
    for call in calls:
        places = _places(call)
        for i, (key, evaluation) in enumerate(zip(call.batch.keys, call.evaluations, strict=True)):
            weights: list[Any] = [None] * len(layers)
            for place, d in zip(places, call.decisions, strict=True):
                weights[rows[place]] = tuple(_part(d.weights[role], i, call.batch) for role in ROLES)
            planned.append(PlannedCall(call.step, key, evaluation, tuple(weights)))
    names = tuple(name for name, _ in layers)
    still = None if frozen is None else tuple(frozen[name] for name in names)
    return Plan(**header, sigmas=sigmas, layers=names, calls=tuple(planned), frozen=still)


def _places(call: CallDecisions) -> list[tuple[str, int]]:
    """Name of each decision's segment, and how often it had run in the call before."""
    seen: dict[str, int] = {}
    places = []
    for d in call.decisions:
        places.append((d.layer, seen.get(d.layer, 0)))
        seen[d.layer] = places[-1][1] + 1
    return places


def _layers(calls: Sequence[CallDecisions]) -> list[tuple[str, int]]:
    """All places of all calls, in the order they first ran."""
    return list(dict.fromkeys(place for call in calls for place in _places(call)))


def _part(weight: Weight, index: int, batch: Batch) -> Weight:
    if not isinstance(weight, Tensor):
        return weight
    parts = batch.parts(weight)
    return weight.mean(0, keepdim=True) if parts is None else parts[index].clone()


def _mean(value: Weight) -> float:
    return float(value.double().mean()) if isinstance(value, Tensor) else value
