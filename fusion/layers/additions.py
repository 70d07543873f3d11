"""Adding weighted deltas to a layer's output."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .segment import Weight


def weighted(features: Tensor, weights: Sequence[tuple[Weight, int]]) -> Tensor:
    """Runs of columns, each times its weight; float32 where a weight is a tensor."""
    if all(isinstance(weight, float) and weight == 1.0 for weight, _ in weights):
        return features
    if len(weights) == 1:
        weight = weights[0][0]
        return features * weight
    tensors = [w for w, _ in weights if isinstance(w, Tensor)]
    shape = torch.broadcast_shapes(*(w.shape[:2] for w in tensors)) if tensors else (1, 1)
    gains = [
        (w if isinstance(w, Tensor) else features.new_full((1, 1, 1), w, dtype=torch.float32)).expand(*shape, width)
        for w, width in weights
    ]
    return features * torch.cat(gains, dim=-1)


def times_pair(features: Tensor, pair: Tensor, ranks: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Hidden features of both roles, each times its weight, in one pass and rounded once.

    Args:
        features: ``[batch, tokens, rank]``, the subject's columns first.
        pair: float32 ``[batch, 2]``.
        ranks: of both roles.
        dtype: of the result.
    """
    if ranks[0] == ranks[1]:
        features, gains = features.unflatten(-1, (2, -1)), pair[:, None, :, None]
    else:
        columns = [pair[:, i : i + 1].expand(-1, rank) for i, rank in enumerate(ranks)]
        gains = torch.cat(columns, dim=1)[:, None]
    if dtype == pair.dtype or (torch.is_grad_enabled() and (features.requires_grad or pair.requires_grad)):
        scaled = (features * gains).to(dtype)
    else:
        scaled = torch.mul(features, gains, out=torch.empty_like(features, dtype=dtype))
    return scaled.flatten(2)


def by_head(delta: Tensor, weight: Weight) -> Tensor:
    assert isinstance(weight, Tensor)
    heads = delta.unflatten(-1, (weight.shape[-1], -1))
    return (heads * weight[..., None]).flatten(-2)


def add_product(part: Tensor, hidden: Tensor, up: Tensor) -> None:
    """``part += hidden up^T``, accumulated in the matrix product's own precision and rounded once."""
    batch, tokens, channels = part.shape
    if part.stride(-1) == 1 and (batch == 1 or part.stride(0) == tokens * part.stride(1)):
        part.view(batch * tokens, channels).addmm_(hidden.reshape(batch * tokens, -1), up.T)
    else:
        part.baddbmm_(hidden, up.T.expand(batch, -1, -1))
