"""What makes routing good in practice: settings that apply to whatever policy is chosen.

All are neutral by default: a policy is then what its paper says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ..layers.segment import Weight
from ..policies.base import StepContext
from ..policies.scheduled.block_mask import BlockMask
from ..policies.scores import SCORES

GRANULARITIES = ("layer", "head", "token")
OWN = "policy's own"


@dataclass(frozen=True)
class Refinement:
    """How a policy's decisions are measured, steadied and bounded.

    With ``rho = log d_c - log d_s`` the measured log ratio of a layer (of a head, of a token), the policy is given
    ``rho' = EMA(rho - even_out * mean_layers(rho))`` and a preference ``lean + time_lead (1 - 2t) +- layer_prior +-
    hysteresis``; its weights are then bounded.

    Attributes:
        score: one of ``SCORES``, or the policy's own.
        lean: preference for the subject, in factors of e of the score; negative prefers the style.
        even_out: how much of the LoRAs' overall difference in loudness is taken out, 0 to 1. The mean over layers is
            that of the step before; the first step uses the files' weights.
        floor: least weight of either LoRA.
        smoothing: share of the step before in an exponential mean over steps, 0 to below 1.
        hysteresis: how much clearer than a draw a hard decision must be before it turns over.
        time_lead: preference for the subject at the first step, and for the style at the last.
        layer_prior: preference for the role that a block is known for (B-LoRA's for SDXL, SplitFlux's for FLUX).
        group_attention: queries and keys of an attention share one decision, values and output another.
        granularity: one decision a layer, an attention head or a token.
        blur: radius, in tokens, of the Gaussian that smooths scores over the picture at granularity "token".
        follow_cond: the negative prompt takes the positive one's decisions of the step before.
        start, end: part of the steps (0 to 1) that is routed; outside it both LoRAs are on, whole.
        freeze_after: number of routed steps after which nothing is measured any more: what the policy makes of the
            mean so far, for the middle of the steps that are left, becomes ordinary weight patches; 0 for never.
        emphasis: how often the LoRAs' effect counts in the picture under classifier-free guidance (:mod:`.emphasis`); 0
            for the policy's own.
        cap: largest norm of what both add to a layer, in multiples of the louder one alone; 0 for no limit.
    """

    score: str = OWN
    lean: float = 0.0
    even_out: float = 0.0
    floor: float = 0.0
    smoothing: float = 0.0
    hysteresis: float = 0.0
    time_lead: float = 0.0
    layer_prior: float = 0.0
    group_attention: bool = False
    granularity: str = "layer"
    blur: float = 1.0
    follow_cond: bool = False
    start: float = 0.0
    end: float = 1.0
    cap: float = 0.0
    freeze_after: int = 0
    emphasis: float = 0.0

    def __post_init__(self) -> None:
        if self.score not in (OWN, *SCORES):
            raise ValueError(f"unknown score {self.score!r}; known: {', '.join((OWN, *SCORES))}")
        if self.granularity not in GRANULARITIES:
            raise ValueError(f"granularity must be one of {', '.join(GRANULARITIES)}, got {self.granularity!r}")
        bounds = {"even_out": (0, 1), "floor": (0, 1), "smoothing": (0, 0.99), "start": (0, 1), "end": (0, 1)}
        bounds |= {
            name: (0, math.inf) for name in ("hysteresis", "layer_prior", "blur", "cap", "freeze_after", "emphasis")
        }
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must lie between {low} and {high}, got {getattr(self, name)}")

    def settings(self) -> dict[str, Any]:
        """What differs from neutral, as JSON."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    def routes(self, context: StepContext) -> bool:
        """Whether the step lies in the routed part of the run."""
        return self.start <= context.along <= self.end

    def freeze_step(self, steps: int) -> int | None:
        """Index of the first step in which nothing is measured any more; None if there is none."""
        if not self.freeze_after:
            return None
        return math.ceil(self.start * max(1, steps - 1)) + self.freeze_after

    def preference(self, name: str, context: StepContext) -> float:
        """What is preferred before anything is measured; above 0 the subject."""
        lean = self.lean + self.time_lead * (1 - 2 * context.along)
        if self.layer_prior:
            subject, style = BlockMask().role(name)
            lean += self.layer_prior * (subject - style)
        return lean

    def bounded(self, weights: tuple[Weight, Weight]) -> tuple[Weight, Weight]:
        """Weights not below the floor."""
        if not self.floor:
            return weights
        subject, style = (w.clamp_min(self.floor) if isinstance(w, Tensor) else max(w, self.floor) for w in weights)
        return subject, style

    def capped(self, weights: tuple[Weight, Weight], subject: Tensor, style: Tensor) -> tuple[Weight, Weight]:
        """Both weights scaled down where their sum is too loud.

        Args:
            weights: of the two branches.
            subject, style: what each adds with weight 1, ``[batch, tokens, channels]``.
        """
        subject, style = subject.float(), style.float()
        alone = torch.maximum(_norm(subject), _norm(style))
        together = _norm(_times(subject, weights[0]) + _times(style, weights[1]))
        gain = (self.cap * alone / together.clamp_min(1e-30)).clamp_max(1.0)
        return weights[0] * gain, weights[1] * gain


def _norm(features: Tensor) -> Tensor:
    return torch.linalg.vector_norm(features, dim=(1, 2), keepdim=True)


def _times(features: Tensor, weight: Weight) -> Tensor:
    if not isinstance(weight, Tensor):
        return features * weight
    heads = weight.shape[-1]
    return (features.unflatten(-1, (heads, -1)) * weight[..., None]).flatten(-2)
