"""What the small worlds' models learn to predict, and at which noise levels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional


class Objective(Protocol):
    """What is predicted of x0 [N, C, H, W] and noise of the same shape at the noise levels [N]."""

    def levels(self, count: int) -> Tensor:
        """Random ones, as the model takes them, [count]."""

    def noised(self, x0: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """What the model is shown."""

    def loss(self, predicted: Tensor, x0: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """Mean over all, one number."""


@dataclass(frozen=True)
class Flow:
    """Rectified flow (Liu et al. 2023): ``v = noise - x0`` at ``x0 (1 - sigma) + noise sigma``."""

    def levels(self, count: int) -> Tensor:
        """Three in four logit-normal (Esser et al. 2024), the rest uniform."""
        return torch.where(torch.rand(count) < 0.25, torch.rand(count), torch.sigmoid(torch.randn(count)))

    def noised(self, x0: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        at = level[:, None, None, None]
        return x0 * (1 - at) + noise * at

    def loss(self, predicted: Tensor, x0: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        return functional.mse_loss(predicted.float(), noise - x0)


@dataclass(frozen=True)
class Noise:
    """The noise itself (Ho et al. 2020) on Stable Diffusion's schedule of 1000 levels.

    Attributes:
        most: what the noisiest levels count at most. To predict ``v`` (Salimans and Ho 2022) as well as noise at those,
            where the composition is made, they count ``1 / alpha^2``.
    """

    most: float = 10.0

    @cached_property
    def signal(self) -> Tensor:
        """``alpha^2`` by level, [1000]."""
        return torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0).float()

    def levels(self, count: int) -> Tensor:
        return torch.randint(0, 1000, (count,)).float()

    def noised(self, x0: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        kept = self.signal[level.long(), None, None, None]
        return x0 * kept.sqrt() + noise * (1 - kept).sqrt()

    def loss(self, predicted: Tensor, x0: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        errors = (predicted.float() - noise).square().mean((1, 2, 3))
        return (errors / self.signal[level.long()].clamp_min(1 / self.most)).mean()


OBJECTIVES: dict[str, Objective] = {"flow": Flow(), "noise": Noise()}
"""By `Kind.predicts`."""
