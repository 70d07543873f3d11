"""Adam's moments of the gradient, carried from one guided step to the next."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class Moments:
    """First and second moment of one sample's gradient (Kingma & Ba, arXiv 1412.6980), with bias correction.

    Carried across the steps of sampling they damp what a single noisy gradient asks for (Adam-guidance, arXiv
    2603.16797). betas: decay of the first and the second moment, each in [0, 1).
    """

    betas: tuple[float, float]
    count: int = 0
    first: torch.Tensor | None = None
    second: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"Adam's betas must be in [0, 1), got {self.betas}")

    def direction(self, gradient: torch.Tensor) -> torch.Tensor:
        """Take a finite gradient in; the direction m / sqrt(v), shaped like it, elements of about unit size."""
        first, second = self.betas
        self.count += 1
        self.first = gradient * (1 - first) if self.first is None else self.first.lerp(gradient, 1 - first)
        square = gradient.square()
        self.second = square * (1 - second) if self.second is None else self.second.lerp(square, 1 - second)
        m, v = self.first / (1 - first**self.count), self.second / (1 - second**self.count)
        # Relative to the gradient's own size: an absolute epsilon would drown the small gradients of large pictures.
        epsilon = 1e-4 * v.mean().sqrt() + torch.finfo(v.dtype).tiny
        return m / (v.sqrt() + epsilon)
