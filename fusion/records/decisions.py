"""What was decided in the model calls of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..layers.batch import Batch
from ..layers.segment import Weight


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


def log_ratios_of(calls: Sequence[CallDecisions]) -> dict[str, float | None]:
    """By segment, the mean of what was measured so far; None where nothing was."""
    found: dict[str, list[float]] = {}
    for call in calls:
        for d in call.decisions:
            values = found.setdefault(d.layer, [])
            if d.log_ratio is not None:
                values.append(mean_of(d.log_ratio))
    return {name: sum(values) / len(values) if values else None for name, values in found.items()}


def mean_of(value: Weight) -> float:
    return float(value.double().mean()) if isinstance(value, Tensor) else value
