"""Policies that look at what each LoRA does to the features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import ScoredPolicy, StepContext
from .scores import SCORES


@dataclass(frozen=True)
class HardChoice(ScoredPolicy):
    """The branch with the larger score takes the whole layer, ties go to the subject (Eq. 13).

    Attributes:
        tokens: how many tokens are scored at most, 0 for all. Their mean stands for the mean over all.
    """

    hard: ClassVar[bool] = True

    tokens: int = 128

    @property
    def max_tokens(self) -> int:
        return self.tokens

    def weights(self, log_ratio: Tensor, lean: Tensor | float, context: StepContext) -> tuple[Tensor, Tensor]:
        wins = (log_ratio + lean >= 0).to(log_ratio.dtype)
        return wins, 1.0 - wins


@dataclass(frozen=True)
class Paper(HardChoice):
    """Eq. 9-13 of arXiv 2602.15539: the LoRA with the larger KL takes the whole layer.

    Where the paper is silent: softmax over channels, mean over tokens, one decision per layer, step and sample,
    conditional and unconditional apart. No balance, no smoothing, no time term. A layer that only one LoRA touches is
    given to it.
    """

    name: ClassVar[str] = "paper"

    @property
    def score(self) -> str:
        return "kl"


@dataclass(frozen=True)
class JensenShannon(HardChoice):
    """The paper's ablation with the symmetric Jensen-Shannon divergence in place of KL."""

    name: ClassVar[str] = "js"

    @property
    def score(self) -> str:
        return "js"


@dataclass(frozen=True)
class Cosine(HardChoice):
    """The paper's ablation with cosine similarity: the LoRA whose output is *less* like the base output wins."""

    name: ClassVar[str] = "cosine"

    @property
    def score(self) -> str:
        return "cosine"


@dataclass(frozen=True)
class Energy(HardChoice):
    """The louder LoRA of the layer, ``||h||^2 / ||F||^2``, takes it: KL without its softmax."""

    name: ClassVar[str] = "energy"

    @property
    def score(self) -> str:
        return "energy"


@dataclass(frozen=True)
class KLSoft(ScoredPolicy):
    """A sigmoid of the log ratio of the two scores: ``w_subject = sigmoid((log d_c - log d_s + lean) / tau)``.

    Attributes:
        temperature: tau; towards 0 it becomes the paper's hard choice, large values share every layer equally.
        share: "one" gives weights that add to 1; "both" gives ``min(1, 2 w)``: equal LoRAs both stay whole and only
            the loser of a clear decision is turned down.
        score_name: one of ``SCORES``.
        tokens: how many tokens are scored at most.
    """

    name: ClassVar[str] = "kl_soft"

    temperature: float = 0.5
    share: str = "one"
    score_name: str = "half_variance"
    tokens: int = 64

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}; for a hard choice use 'paper'")
        if self.share not in ("one", "both"):
            raise ValueError(f"share must be 'one' or 'both', got {self.share!r}")
        if self.score_name not in SCORES:
            raise ValueError(f"unknown score {self.score_name!r}; known: {', '.join(SCORES)}")

    @property
    def score(self) -> str:
        return self.score_name

    @property
    def max_tokens(self) -> int:
        return self.tokens

    def weights(self, log_ratio: Tensor, lean: Tensor | float, context: StepContext) -> tuple[Tensor, Tensor]:
        w_subject = torch.sigmoid((log_ratio + lean) / self.temperature)
        w_style = 1.0 - w_subject
        if self.share == "both":
            return (2 * w_subject).clamp_max(1.0), (2 * w_style).clamp_max(1.0)
        return w_subject, w_style


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
        lead = -self.subject_lead + (self.subject_lead + self.style_lead) * context.along
        r = (self.evenness * log_ratio + lead - lean) / 2
        drive = self._drive(context.emphasis)
        return 2 * drive * torch.sigmoid(-r), 2 * drive * torch.sigmoid(r)

    def _drive(self, emphasis: float) -> float:
        if self.emphasis <= 1 or emphasis <= 1:
            return self.drive
        share = min(1.0, (emphasis - 1) / (self.emphasis - 1))
        return self.drive + share * (self.emphasised_drive - self.drive)
