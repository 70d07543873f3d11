"""Routing policies: from the two branches' scores in a layer to the weights they are fused with.

A layer's LoRAs are summed by role into two branches, subject and style; a policy sees one score per branch and sample
and answers with one weight per branch and sample. The fused output is ``F + w_subject h_subject + w_style h_style``.
Policies are frozen dataclasses without state: what has to be remembered lives in the run.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .scores import SCORES, Score


@dataclass(frozen=True)
class Policy:
    """Base class. ``score`` is None for policies that look at no features."""

    name: ClassVar[str] = ""

    @property
    def score(self) -> Score | None:
        return None

    @property
    def max_tokens(self) -> int:
        """How many tokens of a layer are scored at most; 0 scores all of them."""
        return 0

    def constant_weights(self) -> tuple[float, float] | None:
        """(subject, style) weights where they depend on nothing but the policy; else None."""
        return None

    def weights(self, subject: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
        """Weights ``[batch]`` of the two branches from their scores ``[batch]``."""
        raise NotImplementedError

    def settings(self) -> dict[str, object]:
        """Name and settings, as JSON."""
        return {"policy": self.name, **asdict(self)}


@dataclass(frozen=True)
class Sum(Policy):
    """Both LoRAs at their strengths: what stacking two LoRA loaders does."""

    name: ClassVar[str] = "sum"

    def constant_weights(self) -> tuple[float, float]:
        return 1.0, 1.0


@dataclass(frozen=True)
class Paper(Policy):
    """Eq. 9-13 of arXiv 2602.15539: the LoRA with the larger KL takes the whole layer, ties go to the subject.

    One decision per layer, step and sample, conditional and unconditional apart; no balance, no smoothing, no time
    term. Where only one LoRA touches a layer it is applied as it is.
    """

    name: ClassVar[str] = "paper"

    @property
    def score(self) -> Score:
        return SCORES["kl"]

    def weights(self, subject: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
        wins = (subject >= style).to(subject.dtype)
        return wins, 1.0 - wins


@dataclass(frozen=True)
class KLSoft(Policy):
    """A sigmoid of the log ratio of the two scores: ``w_subject = sigmoid((log d_c - log d_s + bias) / tau)``.

    Attributes:
        temperature: tau; towards 0 it becomes the paper's hard choice, large values share every layer equally.
        balance: bias towards the subject, in factors of e of the score (negative favours the style).
        share: "one" gives weights that add to 1; "both" gives ``min(1, 2 w)``: equal LoRAs both stay whole and only
            the loser of a clear decision is turned down.
    """

    name: ClassVar[str] = "kl_soft"

    temperature: float = 0.5
    balance: float = 0.0
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
    def score(self) -> Score:
        return SCORES[self.score_name]

    @property
    def max_tokens(self) -> int:
        return self.tokens

    def weights(self, subject: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
        # Scores are squares: the floor keeps an all-zero delta finite without touching any real one.
        log_ratio = subject.clamp_min(1e-30).log() - style.clamp_min(1e-30).log()
        w_subject = torch.sigmoid((log_ratio + self.balance) / self.temperature)
        w_style = 1.0 - w_subject
        if self.share == "both":
            return (2 * w_subject).clamp_max(1.0), (2 * w_style).clamp_max(1.0)
        return w_subject, w_style


RECOMMENDED: Policy = KLSoft(share="both")
POLICIES: tuple[type[Policy], ...] = (Sum, Paper, KLSoft)
