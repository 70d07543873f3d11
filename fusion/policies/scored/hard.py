"""All or nothing: the LoRA that moves a layer further takes it. The paper's rule and its ablations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...layers import Pairing
from ..base import ONE_EACH, ScoredPolicy, StepContext
from ..registry import listed


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

    def weights(
        self, log_ratio: Tensor, lean: Tensor | float, context: StepContext, pairing: Pairing = ONE_EACH
    ) -> tuple[Tensor, Tensor]:
        wins = (log_ratio + lean >= 0).to(log_ratio.dtype)
        return wins, 1.0 - wins

    def pair(self, measured: Tensor, lean: float, context: StepContext, pairing: Pairing = ONE_EACH) -> Tensor | None:
        # Norms are compared as energies are, whatever their square.
        factor = math.exp(-lean / 2 if self.score == "energy" else -lean)
        subject, style = measured[:, 0], measured[:, 1] if factor == 1 else measured[:, 1] * factor
        won = measured.new_empty(len(measured), 2)
        torch.ge(subject, style, out=won[:, 0])
        torch.lt(subject, style, out=won[:, 1])
        return won


@listed(2)
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


@listed(4)
@dataclass(frozen=True)
class JensenShannon(HardChoice):
    """The paper's ablation with the symmetric Jensen-Shannon divergence in place of KL."""

    name: ClassVar[str] = "js"

    @property
    def score(self) -> str:
        return "js"


@listed(5)
@dataclass(frozen=True)
class Cosine(HardChoice):
    """The paper's ablation with cosine similarity: the LoRA whose output is *less* like the base output wins."""

    name: ClassVar[str] = "cosine"

    @property
    def score(self) -> str:
        return "cosine"


@listed(6)
@dataclass(frozen=True)
class Energy(HardChoice):
    """The louder LoRA of the layer, ``||h||^2 / ||F||^2``, takes it: KL without its softmax."""

    name: ClassVar[str] = "energy"

    @property
    def score(self) -> str:
        return "energy"
