"""Muon (Jordan et al. 2024) in float32, of convolutions too: torch's computes in bfloat16, which many CPUs emulate."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

A, B, C = 3.4445, -4.775, 2.0315
"""The iteration's quintic: steepest at 0, its fixed points near 1 (Jordan et al. 2024)."""
DECAY = 0.01


def zeropower(gradient: Tensor, steps: int) -> Tensor:
    """About ``U V^T`` of ``U S V^T``, singular values between .5 and 1.5, by Newton-Schulz.

    gradient: [out, in], the norm is free; steps: of the iteration. Returns a new tensor of its shape.
    """
    tall = gradient.shape[0] > gradient.shape[1]
    x = gradient.mT if tall else gradient
    x = x / x.norm().clamp_min(1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum of which every singular value is made about one.

    Args:
        params: matrices [out, in] or kernels [out, in, ...], which are taken as [out, in x ...].
        lr: the root mean square of an update is .2 of it, as AdamW's is about (Liu et al. 2025).
        momentum: of the gradients' mean.
        steps: of `zeropower`.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, steps: int = 4) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "steps": steps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update of every weight that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                mean = state["momentum"]
                mean.lerp_(weight.grad, 1 - group["momentum"])
                update = zeropower(weight.grad.lerp(mean, group["momentum"]).flatten(1), group["steps"])
                scale = 0.2 * max(update.shape) ** 0.5
                weight.mul_(1 - group["lr"] * DECAY).add_(update.view(weight.shape), alpha=-group["lr"] * scale)
