"""One sampling run: its steps, and what was decided in them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..fusion.layers import Decision
from ..fusion.record import RoutingRecord


@dataclass
class _Call:
    """The decisions of one model call, still on the device: ``[4, batch]`` a segment."""

    step: int
    conditions: tuple[int, ...]
    layers: list[str]
    values: list[Tensor]


@dataclass
class Run:
    """Opened when sampling starts, closed when it ends, whatever ends it.

    The step index comes from the sampler's own callback, which fires once a step: nothing has to be read back from
    the device to know it, and samplers that call the model several times a step stay in the same step.
    """

    sigmas: Tensor
    step: int = 0
    calls: list[_Call] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return max(1, len(self.sigmas) - 1)

    def counting(self, callback: Callable[..., Any] | None) -> Callable[..., Any]:
        """The sampler's callback, counting steps on its way."""

        def count(step: int, x0: Tensor, x: Tensor, total_steps: int) -> Any:
            self.step = min(step + 1, self.steps - 1)
            return callback(step, x0, x, total_steps) if callback is not None else None

        return count

    def keep(self, decisions: list[Decision], conditions: tuple[int, ...]) -> None:
        """Keep one model call's decisions. Nothing is copied to the host yet."""
        if not decisions:
            return
        values = [torch.stack((d.subject_score, d.style_score, d.subject_weight, d.style_weight)) for d in decisions]
        self.calls.append(_Call(self.step, conditions, [d.layer for d in decisions], values))

    def record(self, header: dict[str, Any]) -> RoutingRecord:
        """All decisions as one record: the only read-back from the device, once a run."""
        layers = list(dict.fromkeys(name for call in self.calls for name in call.layers))
        index = {name: i for i, name in enumerate(layers)}
        total = torch.zeros(4, len(layers), self.steps, dtype=torch.float64)
        count = torch.zeros(len(layers), self.steps, dtype=torch.float64)
        for call in self.calls:
            means = torch.stack([v.float().mean(-1) for v in call.values]).cpu().double()
            for name, mean in zip(call.layers, means, strict=True):
                total[:, index[name], call.step] += mean
                count[index[name], call.step] += 1
        mean = total / count.clamp_min(1)
        mean[:, count == 0] = math.nan
        return RoutingRecord(
            **header,
            sigmas=tuple(float(s) for s in self.sigmas),
            layers=tuple(layers),
            scores=mean[:2],
            weights=mean[2:],
        )
