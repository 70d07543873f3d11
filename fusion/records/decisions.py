"""What was decided in the model calls of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..layers import Batch, Weight


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


def merged(calls: Sequence[CallDecisions], batch: Batch) -> CallDecisions:
    """What was decided of each latent in a call of its own, as one call of all of them.

    Layers that one latent did not run, as an expert that none of its tokens were sent to, stand at the mean of the
    others.

    Args:
        calls: one a row of the batch's parts, condition by condition.
        batch: of them all.
    """
    found: dict[tuple[str, int], list[Decision | None]] = {}
    for i, call in enumerate(calls):
        seen: dict[str, int] = {}
        for d in call.decisions:
            place = d.layer, seen.get(d.layer, 0)
            seen[d.layer] = place[1] + 1
            found.setdefault(place, [None] * len(calls))[i] = d
    decisions = [_merged(name, decided, batch) for (name, _), decided in found.items()]
    evaluations = tuple(call.evaluations[0] for call in calls[:: len(calls) // len(batch.keys)])
    return CallDecisions(calls[0].step, batch, evaluations, decisions)


def _merged(layer: str, decided: Sequence[Decision | None], batch: Batch) -> Decision:
    known = [d for d in decided if d is not None]

    def rows(values: Sequence[Weight]) -> Weight:
        if all(isinstance(value, float) and value == values[0] for value in values):
            return values[0]
        tensors = [value if isinstance(value, Tensor) else torch.full((1, 1, 1), value) for value in values]
        mean = torch.stack(tensors).mean(0)
        given = iter(tensors)
        in_order = [mean if d is None else next(given) for d in decided]
        each = len(in_order) // len(batch.keys)
        return batch.joined([torch.cat(in_order[i : i + each]) for i in range(0, len(in_order), each)])

    def by_role(values: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {role: rows([value[role] for value in values]) for role in values[0]}

    ratios = [d.log_ratio for d in known if d.log_ratio is not None]
    log_ratio = rows(ratios) if len(ratios) == len(known) else None
    assert not isinstance(log_ratio, float)
    return Decision(layer, by_role([d.scores for d in known]), by_role([d.weights for d in known]), log_ratio)


def read_back(calls: Sequence[CallDecisions]) -> list[CallDecisions]:
    """The same on the host: one copy for all that is on a device."""
    tensors = [
        value
        for call in calls
        for decision in call.decisions
        for value in (*decision.scores.values(), *decision.weights.values(), decision.log_ratio)
        if isinstance(value, Tensor)
    ]
    if not tensors:
        return list(calls)
    parts = iter(_on_host(tensors))

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


def _on_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """float32, in the same order."""
    found: list[Tensor] = [torch.empty(0)] * len(tensors)
    for device in dict.fromkeys(tensor.device for tensor in tensors):
        here = [(i, tensor) for i, tensor in enumerate(tensors) if tensor.device == device]
        flat = torch.cat([tensor.detach().float().flatten() for _, tensor in here]).cpu()
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
