"""Both LoRAs in every layer, evened out in loudness."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..base import ScoredPolicy, StepContext, two_numbers
from ..registry import listed


@listed(7)
@dataclass(frozen=True)
class Balanced(ScoredPolicy):
    """Both LoRAs stay in every layer, evened out in loudness; the subject leads early, the style late.

    With ``e_k = ||h_k||^2 / ||F||^2`` measured in the features and the lead ``b(t)`` going from ``-subject_lead`` to
    ``style_lead`` over the run, less what the user leans towards the subject,

        r = evenness (log e_c - log e_s) + b(t),   w_s = 2 drive sigmoid(r / 2),   w_c = 2 drive sigmoid(-r / 2).

    At r = 0 both weights are ``drive``; at evenness 1 both LoRAs are equally loud in a layer when b = 0, however
    strong their files are. Composition is set in the first steps and texture in the last (K-LoRA's finding), hence
    the hand-over. The negative prompt's pass gets less of the LoRAs than the positive one, so that classifier-free
    guidance strengthens what they do; that needs less weight than pushing both passes.

    Attributes:
        evenness: 0 ignores loudness, 1 evens it out.
        subject_lead: how far the subject leads at the first step, in factors of e of energy.
        style_lead: how far the style leads at the last step.
        drive: weight of each when neither leads and their effect counts once.
        emphasis: how often it should count.
        emphasised_drive: weight of each when it counts that often; in between, weights are interpolated.
        tokens: how many tokens of a layer are measured at most.
    """

    name: ClassVar[str] = "balanced"

    evenness: float = 1.0
    subject_lead: float = 1.0
    style_lead: float = 3.0
    drive: float = 1.4
    emphasis: float = 2.5
    emphasised_drive: float = 1.0
    tokens: int = 64

    def __post_init__(self) -> None:
        for name in ("drive", "emphasis", "emphasised_drive"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")

    @property
    def own_emphasis(self) -> float:
        return self.emphasis

    @property
    def score(self) -> str:
        return "energy"

    @property
    def max_tokens(self) -> int:
        return self.tokens

    def weights(self, log_ratio: Tensor, lean: Tensor | float, context: StepContext) -> tuple[Tensor, Tensor]:
        r = (self.evenness * log_ratio + self._lead(context) - lean) / 2
        drive = self._drive(context.emphasis)
        return 2 * drive * torch.sigmoid(-r), 2 * drive * torch.sigmoid(r)

    def pair(self, measured: Tensor, lean: float, context: StepContext) -> Tensor | None:
        # With n = ||h|| and k = exp((b - lean) / 2):  w_c = 2 drive n_s / (n_s + k n_c),  w_s = 2 drive n_c / (n_c +
        # n_s / k), n to the power of the evenness.
        if self.evenness != 1:
            measured = measured.pow(self.evenness)
        k = math.exp((self._lead(context) - lean) / 2)
        own, other = measured[:, :2], measured[:, 1:]
        both = torch.addcmul(other, own, two_numbers(k, 1 / k, measured.device))
        nothing = two_numbers(0.0, 0.0, measured.device)
        return torch.addcdiv(nothing, other, both, value=2 * self._drive(context.emphasis))

    def _lead(self, context: StepContext) -> float:
        return -self.subject_lead + (self.subject_lead + self.style_lead) * context.along

    def _drive(self, emphasis: float) -> float:
        if self.emphasis <= 1 or emphasis <= 1:
            return self.drive
        share = min(1.0, (emphasis - 1) / (self.emphasis - 1))
        return self.drive + share * (self.emphasised_drive - self.drive)
