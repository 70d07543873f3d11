"""Plans: a run's decisions, kept so that they can be made again without measuring anything.

As JSON a plan is one object: ``format`` and ``version``; ``loras`` (name, role, strength, sha256 of the file);
``policy`` and ``refinement`` with their settings; ``sigmas``; ``layers``, in the order they run; ``calls``, one a
condition, step and evaluation, with ``weights``: per layer ``[subject, style]``, each a number for all samples or
``[sample][token][head]``, or null where it did not run; and ``frozen``, where the run was: per layer the weights of its
rest. Numbers have nine digits, which is what a float32 needs to be read back as it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..layers import Batch, Weight
from ..policies import StepContext
from ..roles import ROLES
from .decisions import CallDecisions

FORMAT, VERSION = "lora-conductor-plan", 1
Pair = tuple[Weight, Weight]


class PlanError(ValueError):
    """A plan cannot be read, or does not fit what it is used on."""


@dataclass(frozen=True)
class PlannedCall:
    """The weights ``(subject, style)`` of all layers for one condition, at one evaluation of one step.

    None stands for a layer that did not run in that call.
    """

    step: int
    condition: str
    evaluation: int
    weights: tuple[Pair | None, ...] = field(repr=False)


@dataclass(frozen=True)
class Plan:
    """See the module.

    Attributes:
        loras: name, role, strength and content hash of every LoRA.
        policy, refinement: settings of what decided.
        sigmas: noise levels of the run, ``steps + 1`` of them.
        layers: decided segments in the order they run; one that runs n times a call is there n times.
        calls: what was decided. Empty for policies that decide nothing while sampling.
        frozen: of a run that was frozen, the weights of its rest by layer.
    """

    loras: tuple[dict[str, Any], ...]
    policy: dict[str, Any]
    refinement: dict[str, Any]
    sigmas: tuple[float, ...]
    layers: tuple[str, ...]
    calls: tuple[PlannedCall, ...] = field(repr=False)
    frozen: tuple[tuple[float, float], ...] | None = field(default=None, repr=False)

    @property
    def steps(self) -> int:
        return max(1, len(self.sigmas) - 1)

    @cached_property
    def digest(self) -> str:
        """Hash of the whole content."""
        return hashlib.sha256(self.dumps().encode()).hexdigest()

    def dumps(self) -> str:
        return json.dumps(
            {
                "format": FORMAT,
                "version": VERSION,
                "loras": list(self.loras),
                "policy": self.policy,
                "refinement": self.refinement,
                "sigmas": list(self.sigmas),
                "roles": list(ROLES),
                "layers": list(self.layers),
                "calls": [
                    {
                        "step": call.step,
                        "condition": call.condition,
                        "evaluation": call.evaluation,
                        "weights": [pair and [_plain(w) for w in pair] for pair in call.weights],
                    }
                    for call in self.calls
                ],
                "frozen": None if self.frozen is None else [list(pair) for pair in self.frozen],
            },
            separators=(",", ":"),
        )

    @cached_property
    def _by_place(self) -> dict[tuple[int, str], list[PlannedCall]]:
        places: dict[tuple[int, str], list[PlannedCall]] = {}
        for call in self.calls:
            places.setdefault((call.step, call.condition), []).append(call)
        return places

    def planned(self, context: StepContext, condition: str, evaluation: int) -> PlannedCall:
        """What was decided there, or at the nearest place: a plan also fits other steps, samplers and prompts."""
        step = context.step
        if context.steps != self.steps:
            step = round(context.along * (self.steps - 1))
        group, _, _ = condition.partition(".")
        for place in ((step, condition), (step, f"{group}.0"), (step, "positive.0")):
            if place in self._by_place:
                calls = self._by_place[place]
                return calls[min(evaluation, len(calls) - 1)]
        return min(self.calls, key=lambda call: abs(call.step - step))


def loads(text: str) -> Plan:
    """A plan from its JSON.

    Raises:
        PlanError: the text is no plan, or one of a later version.
    """
    try:
        plain = json.loads(text)
        if plain["format"] != FORMAT:
            raise PlanError("it is no routing plan")
        if plain["version"] != VERSION:
            raise PlanError(f"it has version {plain['version']}, and this release reads version {VERSION}")
        layers = tuple(plain["layers"])
        calls = tuple(
            PlannedCall(
                call["step"],
                call["condition"],
                call["evaluation"],
                tuple(pair and (_weight(pair[0]), _weight(pair[1])) for pair in call["weights"]),
            )
            for call in plain["calls"]
        )
        frozen = plain["frozen"]
        if frozen is not None:
            frozen = tuple((float(pair[0]), float(pair[1])) for pair in frozen)
        if any(len(weights) != len(layers) for weights in (*(call.weights for call in calls), frozen or layers)):
            raise PlanError("its calls do not name every layer")
        settings = plain["policy"], plain["refinement"]
        return Plan(tuple(plain["loras"]), *settings, tuple(plain["sigmas"]), layers, calls, frozen)
    except PlanError:
        raise
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise PlanError(f"it cannot be read ({type(error).__name__}: {error})") from error


def _plain(weight: Weight) -> Any:
    if not isinstance(weight, Tensor):
        return weight
    return [[[float(f"{value:.9g}") for value in row] for row in rows] for rows in weight.tolist()]


def _weight(plain: Any) -> Weight:
    if isinstance(plain, list):
        weight = torch.tensor(plain, dtype=torch.float32)
        if weight.ndim != 3:
            raise PlanError("a weight is neither a number nor [sample][token][head]")
        return weight
    return float(plain)


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
