"""Both LoRAs in every layer, evened out in loudness."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...layers import Pairing, likeness
from ..base import ONE_EACH, ScoredPolicy, StepContext, two_numbers
from ..registry import listed


@listed(7)
@dataclass(frozen=True)
class Balanced(ScoredPolicy):
    """Both LoRAs stay in every layer, evened out in loudness; the subject leads early, the style late.

    With ``e_k = ||h_k||^2 / ||F||^2`` measured in the features, the user's strengths ``s_k`` in them, and the lead
    ``b(t)`` going from ``-subject_lead`` in pure noise towards ``style_lead`` where none is left, less what the user
    leans towards the subject,

        r = evenness (log e_c / s_c^2 - log e_s / s_s^2) + b(t)
        w_k = 1 + p (g_k - 1),   g_c = 2 sigmoid(-r / 2),   g_s = 2 sigmoid(r / 2).

    At evenness 1 and b = 0 both files are equally loud in a layer, however strong they were made; what the user
    chooses, the strengths, comes on top of that. The presence ``p`` (``Pairing.presence``) is how far both LoRAs are
    there: where one is turned down, or as good as zero in a layer, the other is what it is alone. Composition is set
    in the first steps and texture in the last (K-LoRA's finding), hence the hand-over. The negative prompt's pass gets
    none of the LoRAs, as far as both are there; what they do counts ``1 + p (emphasis - 1)`` times by classifier-free
    guidance, with the less weight the stronger that is (:mod:`...routing.emphasis`). No weight goes beyond how often
    the effect counts in the picture: at CFG 1, where it counts once, no LoRA adds more to a layer than it does alone.

    Attributes:
        evenness: 0 ignores loudness, 1 evens it out.
        subject_lead: how far the subject leads in pure noise, in factors of e of energy.
        style_lead: how far the style would lead at the end, where no noise is left.
        emphasis: how often the effect of both should count where CFG allows.
        tokens: how many tokens of a layer are measured at most.
        presence: whether it is heeded; without it, a strength is a part of the file's loudness and evened out with it.
    """

    name: ClassVar[str] = "balanced"

    evenness: float = 1.0
    subject_lead: float = 1.0
    style_lead: float = 3.0
    emphasis: float = 2.5
    tokens: int = 64
    presence: bool = True

    def __post_init__(self) -> None:
        if not self.emphasis > 0:
            raise ValueError(f"emphasis must be above 0, got {self.emphasis}")

    @property
    def own_emphasis(self) -> float:
        return self.emphasis

    @property
    def fades(self) -> bool:
        return self.presence

    @property
    def score(self) -> str:
        return "energy"

    @property
    def max_tokens(self) -> int:
        return self.tokens

    def weights(
        self, log_ratio: Tensor, lean: Tensor | float, context: StepContext, pairing: Pairing = ONE_EACH
    ) -> tuple[Tensor, Tensor]:
        most, share = max(1.0, context.emphasis), self._presence(pairing, log_ratio)
        r = (self.evenness * (log_ratio - self._turned(pairing)) + self._lead(context) - lean) / 2
        subject, style = ((2 * torch.sigmoid(x)).clamp_max(most) for x in (-r, r))
        return 1 + share * (subject - 1), 1 + share * (style - 1)

    def pair(self, measured: Tensor, lean: float, context: StepContext, pairing: Pairing = ONE_EACH) -> Tensor | None:
        # With n = ||h|| and k = exp(r / 2) without the norms:  g_c = 2 n_s / (n_s + k n_c), g_s = 2 n_c / (n_c + n_s /
        # k), n to the power of the evenness.
        if pairing.loudness is None:
            return None
        if self.evenness != 1:
            measured = measured.pow(self.evenness)
        k = math.exp((self._lead(context) - lean - self.evenness * self._turned(pairing)) / 2)
        own, other = measured[:, :2], measured[:, 1:]
        both = torch.addcmul(other, own, two_numbers(k, 1 / k, measured.device))
        share = pairing.presence if self.presence else 1.0
        found = torch.addcdiv(two_numbers(1 - share, 1 - share, measured.device), other, both, value=2 * share)
        most = max(1.0, context.emphasis)
        return found if most >= 2 else found.clamp_max_(1 + share * (most - 1))

    def _presence(self, pairing: Pairing, log_ratio: Tensor) -> Tensor | float:
        if not self.presence:
            return 1.0
        if pairing.loudness is not None:
            return pairing.presence
        # Where the files do not tell, what they do here does.
        return pairing.in_strength * likeness(log_ratio - pairing.turned)

    def _turned(self, pairing: Pairing) -> float:
        return pairing.turned if self.presence else 0.0

    def _lead(self, context: StepContext) -> float:
        return -self.subject_lead + (self.subject_lead + self.style_lead) * context.progress
