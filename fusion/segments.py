"""The two branches of one segment as factors, and their weight statistics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROLES = ("subject", "style")


@dataclass(frozen=True)
class SegmentDeltas:
    """What both roles do to one run of output channels; strengths and scales are folded into the up-projections.

    Attributes:
        name: e.g. ``diffusion_model.double_blocks.0.img_attn.qkv[0:256]``.
        down: role to ``[rank, in, *kernel]`` float32.
        up: role to ``[out, rank]`` float32.
    """

    name: str
    down: dict[str, Tensor]
    up: dict[str, Tensor]

    def rank(self, role: str) -> int:
        return self.down[role].shape[0]

    def dense(self, role: str) -> Tensor:
        """``dW`` of a role, ``[out, in, *kernel]``."""
        down = self.down[role]
        return (self.up[role] @ down.flatten(1)).reshape(self.up[role].shape[0], *down.shape[1:])

    def energy(self, role: str) -> float:
        """``||dW||_F^2 = tr((B^T B)(A A^T))``, without the dense product."""
        up, down = self.up[role].double(), self.down[role].double().flatten(1)
        return float(((up.T @ up) * (down @ down.T)).sum().clamp_min(0))

    def l1_and_top(self, role: str, k: int) -> tuple[float, float]:
        """``||dW||_1`` and the sum of the ``k`` largest ``|dW|`` entries (K-LoRA's importance)."""
        flat = self.dense(role).flatten().abs()
        top = torch.topk(flat, min(k, flat.numel())).values
        return float(flat.sum(dtype=torch.float64)), float(top.sum(dtype=torch.float64))
