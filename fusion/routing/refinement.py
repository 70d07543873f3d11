"""What makes routing good in practice: settings that apply to whatever policy is chosen.

All are neutral by default: a policy is then what its paper says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ..layers import Weight
from ..policies import SCORES, BlockMask, StepContext, setting, settings_of

GRANULARITIES = ("layer", "head", "token")
OWN = "policy's own"
ANY, UPWARDS = (-math.inf, math.inf), (0.0, math.inf)
NEAR = 1e-4  # of the schedule: as far as it is known


@dataclass(frozen=True)
class Refinement:
    """How a policy's decisions are measured, steadied and bounded.

    With ``rho = log d_c - log d_s`` the measured log ratio of a layer (of a head, of a token), the policy is given
    ``rho' = EMA(rho - even_out * mean_layers(rho))`` and a preference ``lean + time_lead (1 - 2t) +- layer_prior +-
    hysteresis``; its weights are then bounded.

    The fields' order is that of the nodes' inputs: only ever append. The router has its sockets before those after
    ``freeze_after``.

    Attributes:
        lean: preference for the subject, in factors of e of the score; negative prefers the style. Users know it as
            "balance".
        score: one of ``SCORES``, or the policy's own.
        even_out: how much of the LoRAs' overall difference in loudness is taken out, 0 to 1. The mean over layers is
            that of the step before; the first step uses the files' weights.
        floor: least weight of either LoRA.
        smoothing: share of the step before in an exponential mean over steps, 0 to below 1.
        hysteresis: how much clearer than a draw a hard decision must be before it turns over.
        time_lead: preference for the subject in pure noise, and for the style where none is left.
        layer_prior: preference for the role that a block is known for (B-LoRA's for SDXL, SplitFlux's for FLUX).
        blur: radius, in tokens, of the Gaussian that smooths scores over the picture at granularity "token".
        start, end: part of the model's schedule (0 to 1) that is routed; outside it both LoRAs are on, whole.
        cap: largest norm of what both add to a layer, in multiples of the louder one alone; 0 for no limit.
        granularity: one decision a layer, an attention head or a token.
        group_attention: queries and keys of an attention share one decision, values and output another.
        follow_cond: the negative prompt takes the positive one's decisions of the step before.
        freeze_after: number of routed steps after which nothing is measured any more: what the policy makes of the
            mean so far, for the middle of the steps that are left, becomes ordinary weight patches; 0 for never.
        emphasis: how often the LoRAs' effect counts in the picture, by classifier-free guidance and by weight
            (:mod:`.emphasis`); 0 for the policy's own, which takes no more than whole weights.
    """

    lean: float = setting(
        0.0,
        "Leaning of every policy that measures. Above 0 favours the subject, below 0 the style, 0 neither. "
        "Try 1 or -1 first.",
        name="balance",
        least=-10.0,
        most=10.0,
        allowed=ANY,
        step=0.1,
        folded=False,
    )
    score: str = setting(
        OWN,
        "What is measured of a LoRA in a layer. standardised_kl and energy are not fooled by the huge "
        "single activations of FLUX-like models; kl is the paper's.",
        options=(OWN, *SCORES),
    )
    even_out: float = setting(
        0.0,
        "Takes out how much louder one LoRA is than the other overall, so that a LoRA trained harder does not win "
        "everywhere. 0 leaves it, 1 takes all of it out. recommended evens out layer by layer already.",
        least=0.0,
        most=1.0,
        step=0.05,
    )
    floor: float = setting(
        0.0,
        "The least that either LoRA gets in any layer. 0.3 keeps a loser recognisable.",
        least=0.0,
        most=1.0,
        step=0.05,
    )
    smoothing: float = setting(
        0.0,
        "Steadies decisions over steps: the share of the step before in each new measurement. 0.7 stops flicker.",
        least=0.0,
        most=0.99,
        step=0.05,
    )
    hysteresis: float = setting(
        0.0,
        "All-or-nothing policies: how much clearer than a draw a layer must be before it changes hands. 0.15 is mild.",
        least=0.0,
        most=10.0,
        allowed=UPWARDS,
        step=0.05,
    )
    time_lead: float = setting(
        0.0,
        "Prefers the subject in the first steps (composition) and the style in the last (texture) by this much; "
        "negative is the other way round. recommended has a hand-over of its own, which this adds to.",
        least=-10.0,
        most=10.0,
        allowed=ANY,
        step=0.1,
    )
    layer_prior: float = setting(
        0.0,
        "Prefers the subject in blocks known for content and the style in blocks known for style (SDXL, FLUX). "
        "Other models have no such blocks, and nothing changes there.",
        least=0.0,
        most=10.0,
        allowed=UPWARDS,
        step=0.1,
    )
    blur: float = setting(
        1.0,
        "Granularity token: how far, in tokens, neighbouring places decide together.",
        least=0.0,
        most=16.0,
        allowed=UPWARDS,
        step=0.5,
    )
    start: float = setting(
        0.0,
        "Routing begins at this part of the run. Before it both LoRAs are on, whole.",
        least=0.0,
        most=1.0,
        step=0.01,
    )
    end: float = setting(
        1.0,
        "Routing ends at this part of the run. After it both LoRAs are on, whole.",
        least=0.0,
        most=1.0,
        step=0.01,
    )
    cap: float = setting(
        0.0,
        "Against burnt pictures: both together add to a layer at most this many times what the louder does. 0: off.",
        least=0.0,
        most=10.0,
        allowed=UPWARDS,
        step=0.05,
    )
    granularity: str = setting(
        "layer",
        "What is decided at once: a whole layer, each attention head, or each place in the picture "
        "(token). Finer is slower.",
        options=GRANULARITIES,
    )
    group_attention: bool = setting(
        False,
        "Queries and keys of an attention share one decision, values and output another, so that one LoRA's "
        "question is never put to the other's keys.",
    )
    follow_cond: bool = setting(
        False,
        "The negative prompt takes what was decided for the positive one a step earlier, so that CFG does not "
        "amplify differences in routing.",
    )
    freeze_after: int = setting(
        0,
        "Measure in this many steps, then settle the rest of the run at once; where both prompts get the "
        "same (emphasis 1, or no CFG), as ordinary weight patches, at no cost. 0 measures in every step. Does not "
        "concern switch, composite and the policies that merge before sampling.",
        least=0,
        most=10000,
        allowed=UPWARDS,
    )
    emphasis: float = setting(
        0.0,
        "How many times what the LoRAs do counts in the picture. 1: once, as with ordinary loaders. More: by CFG, "
        "which brings out what the negative prompt's pass does not have. Where CFG gives more than that, both LoRAs "
        "are turned down as far; where it gives less (at CFG 1, nothing), up. 0: what suits the policy, never up. "
        "Policies that merge before sampling cannot do it, except sum.",
        least=0.0,
        most=10.0,
        allowed=UPWARDS,
        step=0.05,
    )

    def __post_init__(self) -> None:
        for its in settings_of(self):
            its.check(getattr(self, its.field))

    def settings(self) -> dict[str, Any]:
        """What differs from neutral, as JSON."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    def routes(self, context: StepContext) -> bool:
        """Whether the step lies in the routed part of the run."""
        return self.start - NEAR <= context.progress <= self.end + NEAR

    def freeze_step(self, steps: Sequence[StepContext]) -> int | None:
        """Index of the first step in which nothing is measured any more; None if there is none.

        Args:
            steps: all of a run.
        """
        if not self.freeze_after:
            return None
        before = sum(1 for context in steps if context.progress < self.start - NEAR)
        return before + self.freeze_after

    def preference(self, name: str, context: StepContext, blocks: str) -> float:
        """What is preferred before anything is measured; above 0 the subject.

        Args:
            name: of the segment.
            context: where in the run.
            blocks: whose blocks the model has.
        """
        lean = self.lean + self.time_lead * (1 - 2 * context.progress)
        if self.layer_prior:
            subject, style = BlockMask().role(name, blocks)
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
