"""The paper's question, answered softly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...layers import Pairing
from ..base import ONE_EACH, ScoredPolicy, StepContext, two_numbers
from ..registry import listed
from ..scores import SCORES
from ..setting import setting

LEAST = 1e-30  # of a score, so that it has a logarithm


@listed(3)
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

    temperature: float = setting(
        0.5,
        "kl_soft: how soft the choice is. Small is nearly all-or-nothing, large shares evenly.",
        least=0.01,
        most=10.0,
        step=0.01,
        folded=False,
    )
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

    def weights(
        self, log_ratio: Tensor, lean: Tensor | float, context: StepContext, pairing: Pairing = ONE_EACH
    ) -> tuple[Tensor, Tensor]:
        w_subject = torch.sigmoid((log_ratio + lean) / self.temperature)
        w_style = 1.0 - w_subject
        if self.share == "both":
            return (2 * w_subject).clamp_max(1.0), (2 * w_style).clamp_max(1.0)
        return w_subject, w_style

    def pair(self, measured: Tensor, lean: float, context: StepContext, pairing: Pairing = ONE_EACH) -> Tensor | None:
        # sigmoid((log d_c - log d_s + lean) / tau) is a softmax over the roles.
        power = (2.0 if self.score == "energy" else 1.0) / self.temperature
        logs = torch.xlogy(power, measured[:, :2] if self.score == "energy" else measured.clamp_min(LEAST))
        if lean:
            logs += two_numbers(lean / self.temperature, 0.0, logs.device)
        shares = torch.softmax(logs, dim=1)
        return (2 * shares).clamp_max_(1.0) if self.share == "both" else shares
