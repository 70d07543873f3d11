"""The routing record: what was decided in each layer at each step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..policies import title
from ..roles import ROLES
from .contributions import UNKNOWN, Effects, contributions
from .decisions import SCORES, WEIGHTS, CallDecisions, Rows


@dataclass(frozen=True)
class RoutingRecord:
    """A run's decisions, averaged over the batch and over conditional and unconditional passes.

    Attributes:
        policy: the policy's name and settings.
        loras: name, role, strength and content hash of every LoRA.
        refinement: the settings of the router that are not neutral.
        sigmas: the noise levels of the run, ``steps + 1`` of them.
        layers: names of the decided layers (or slices of fused layers), in the order they run.
        scores, weights: ``[role, layer, step]`` float64, roles as in ``ROLES``; NaN where nothing was decided.
        took: seconds of the sampling, and of scoring and fusing in it as the host's clock sees them; None if nobody
            measured. Not part of the JSON: the same run takes another time tomorrow.
        effects: what the LoRAs do in the layers before they are weighted.
    """

    policy: dict[str, Any]
    loras: tuple[dict[str, Any], ...]
    refinement: dict[str, Any]
    sigmas: tuple[float, ...]
    layers: tuple[str, ...]
    scores: Tensor
    weights: Tensor
    took: tuple[float, float] | None = None
    effects: Effects = UNKNOWN

    @property
    def steps(self) -> int:
        return self.weights.shape[-1]

    @property
    def title(self) -> str:
        """What users call the policy."""
        return title(self.policy)

    def contributions(self) -> Tensor:
        """Subject's share of what both LoRAs add, ``[layer, step]``; NaN where nothing was decided."""
        return contributions(self.weights, self.scores, self.layers, self.effects)

    def weight_shares(self) -> Tensor:
        """``w_subject / (w_subject + w_style)``, ``[layer, step]``; NaN where nothing was decided."""
        return self.weights[0] / self.weights.sum(0).clamp_min(1e-12)

    def subject_share(self) -> float | None:
        """Mean of `contributions` over all decisions; None if there were none."""
        return _mean(self.contributions())

    def subject_weight(self) -> float | None:
        """Mean of `weight_shares` over all decisions; None if there were none."""
        return _mean(self.weight_shares())

    def to_json(self) -> dict[str, Any]:
        """As plain JSON; values that were not decided are null."""
        return {
            "version": 1,
            "title": self.title,
            "policy": self.policy,
            "loras": list(self.loras),
            "refinement": self.refinement,
            "roles": list(ROLES),
            "steps": self.steps,
            "sigmas": [round(s, 6) for s in self.sigmas],
            "layers": list(self.layers),
            "scores": _plain(self.scores),
            "weights": _plain(self.weights),
            "measured": self.effects.measured,
            "loudness": [round(each, 4) for each in self.effects.of(self.layers).tolist()],
            "contributions": _plain(self.contributions()[None])[0],
        }


def empty_record(header: dict[str, Any]) -> RoutingRecord:
    """The record of a static merge: nothing is decided while sampling."""
    nothing = torch.zeros(len(ROLES), 0, 0, dtype=torch.float64)
    return RoutingRecord(**header, sigmas=(), layers=(), scores=nothing, weights=nothing)


def _mean(values: Tensor) -> float | None:
    known = values[~values.isnan()]
    return float(known.mean()) if known.numel() else None


def _plain(values: Tensor) -> list[list[list[float | None]]]:
    return [
        [[None if math.isnan(v) else float(f"{v:.6g}") for v in steps] for steps in layers]
        for layers in values.tolist()
    ]


def record_of(
    calls: Sequence[CallDecisions], sigmas: tuple[float, ...], header: dict[str, Any], effects: Effects = UNKNOWN
) -> RoutingRecord:
    """Means over the batch, over conditions and over the evaluations of a step, of calls that were read back."""
    steps = max(1, len(sigmas) - 1)
    table = Rows()
    rows = [table.of(call.layers) for call in calls]
    total = torch.zeros(4, len(table.layers), steps, dtype=torch.float64)
    count = torch.zeros_like(total)
    for call, at in zip(calls, rows, strict=True):
        means = call.means()[: len(total)]
        total[:, :, call.step].index_add_(1, at, means.nan_to_num(0.0))
        count[:, :, call.step].index_add_(1, at, (means == means).double())  # noqa: PLR0124 - NaN is not
    mean = total / count
    scores, weights = mean[list(SCORES)], mean[list(WEIGHTS)]
    layers = tuple(table.layers)
    return RoutingRecord(**header, sigmas=sigmas, layers=layers, scores=scores, weights=weights, effects=effects)
