"""One sampling run: its steps, its router, and what was decided."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..fusion.layers import Weight
from ..fusion.policies import StepContext
from ..fusion.record import RoutingRecord
from ..fusion.router import Decision, Router
from ..fusion.segments import ROLES


@dataclass
class _Call:
    """The decisions of one model call, still on the device."""

    step: int
    decisions: list[Decision]


@dataclass(eq=False)
class Run:
    """Opened when sampling starts, closed when it ends, whatever ends it.

    The step index comes from the sampler's own callback, which fires once a step: nothing has to be read back from
    the device to know it, and samplers that call the model several times a step stay in the same step.
    """

    router: Router
    sigmas: tuple[float, ...]
    calls: list[_Call] = field(default_factory=list)
    _measured: dict[Any, dict[Any, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._go_to(0)

    @property
    def steps(self) -> int:
        return max(1, len(self.sigmas) - 1)

    def _go_to(self, step: int) -> None:
        step = min(step, self.steps - 1)
        self.router.context = StepContext(step, self.steps, self.sigmas[step])

    def counting(self, callback: Callable[..., Any] | None) -> Callable[..., Any]:
        """The sampler's callback, counting steps on its way."""

        def count(step: int, x0: Tensor, x: Tensor, total_steps: int) -> Any:
            self._go_to(step + 1)
            return callback(step, x0, x, total_steps) if callback is not None else None

        return count

    def measured_of(self, base_forward: Callable[..., Any]) -> dict[Any, Any]:
        """What adapters have measured of a base layer. Its weights hold still while a run lasts, and no longer."""
        return self._measured.setdefault(base_forward, {})

    def end_call(self) -> None:
        """Keep the decisions of the model call that just ended. Nothing is copied to the host yet."""
        decisions = self.router.take()
        if decisions:
            self.calls.append(_Call(self.router.context.step, decisions))

    def record(self, header: dict[str, Any]) -> RoutingRecord:
        """All decisions as one record: the only read-back from the device, once a run."""
        layers = list(dict.fromkeys(d.layer for call in self.calls for d in call.decisions))
        index = {name: i for i, name in enumerate(layers)}
        total = torch.zeros(4, len(layers), self.steps, dtype=torch.float64)
        count = torch.zeros(len(layers), self.steps, dtype=torch.float64)
        for call in self.calls:
            for decision, values in zip(call.decisions, _to_host(call.decisions), strict=True):
                total[:, index[decision.layer], call.step] += values
                count[index[decision.layer], call.step] += 1
        mean = total / count.clamp_min(1)
        mean[:, count == 0] = math.nan
        return RoutingRecord(**header, sigmas=self.sigmas, layers=tuple(layers), scores=mean[:2], weights=mean[2:])


def _to_host(decisions: list[Decision]) -> Tensor:
    """``[decisions, 4]`` batch means: scores and weights of both roles; scores are NaN where there were none."""
    columns = []
    for decision in decisions:
        scores = [decision.scores.get(role, math.nan) for role in ROLES]
        columns.append([_mean(value) for value in (*scores, *(decision.weights[role] for role in ROLES))])
    tensors = [value for row in columns for value in row if isinstance(value, Tensor)]
    read = iter(torch.stack(tensors).double().cpu().tolist() if tensors else [])
    return torch.tensor([[next(read) if isinstance(v, Tensor) else v for v in row] for row in columns]).double()


def _mean(value: Weight) -> Weight:
    return value.float().mean() if isinstance(value, Tensor) else value
