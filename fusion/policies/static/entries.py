"""What merges do with the entries of dense deltas: keep the largest, vote on signs, draw by chance."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def top_fraction(delta: Tensor, density: float) -> Tensor:
    """Zero all but the ``density`` largest entries by magnitude (of the whole matrix, as in TIES)."""
    keep = max(1, round(density * delta.numel()))
    if keep >= delta.numel():
        return delta
    threshold = delta.abs().flatten().kthvalue(delta.numel() - keep + 1).values
    return torch.where(delta.abs() >= threshold, delta, torch.zeros_like(delta))


def elect_and_mean(deltas: list[Tensor]) -> Tensor:
    """TIES' last two steps: elect each entry's sign by the summed mass (zero counts as +), average those that agree."""
    stacked = torch.stack(deltas)
    sign = torch.where(stacked.sum(0) >= 0, 1.0, -1.0).to(stacked)
    agree = (stacked * sign > 0).to(stacked)
    return (stacked * agree).sum(0) / agree.sum(0).clamp_min(1)


def uniform(name: str, role: str, seed: int, like: Tensor) -> Tensor:
    """Uniform numbers that depend on the layer, the role and the seed alone, not on the order of layers."""
    digest = hashlib.sha256(f"{seed}:{role}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.rand(like.shape, generator=generator).to(like.device)


def check_density(density: float) -> None:
    """Raise ValueError unless it is a share of entries that leaves any."""
    if not 0 < density <= 1:
        raise ValueError(f"density must lie in (0, 1], got {density}")
