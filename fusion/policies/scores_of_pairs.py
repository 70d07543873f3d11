"""Scores of both roles at once, by few operations: those of :mod:`.scores`, for the layers of a running model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .scores import EXP_LIMIT, SCORES


def scores_of_pair(name: str, base: Tensor, deltas: Tensor, into: Tensor | None = None) -> tuple[Tensor, float]:
    """A score of ``SCORES`` for both roles.

    Args:
        name: of the score.
        base: ``[batch, tokens, channels]``.
        deltas: float32 ``[2, batch, tokens, channels]``.
        into: float32 ``[batch, 2]``, where they are put.

    Returns:
        ``[batch, 2]`` float32, and what they are to be multiplied by.
    """
    if name == "half_variance":
        return _half_variance(base, deltas, into), 0.5 / base.shape[1]
    found = _kl_softmax(base, deltas) if name == "kl" else SCORES[name](base, deltas).T
    return (found if into is None else into.copy_(found)), 1.0


def _half_variance(base: Tensor, deltas: Tensor, into: Tensor | None) -> Tensor:
    batch, tokens, channels = base.shape
    p = torch.softmax(base, dim=-1, dtype=torch.float32)
    flat = deltas.reshape(2, batch * tokens, channels)
    means = torch.bmm(p.reshape(-1, 1, channels), flat.permute(1, 2, 0))[:, 0].T[..., None]
    # (h - mean)^2 in one pass, with no difference of squares to lose a faint delta in.
    squares = F.mse_loss(flat, means.expand_as(flat), reduction="none").reshape(2, batch, tokens * channels)
    out = None if into is None else into[:, None]
    return torch.bmm(p.reshape(batch, 1, tokens * channels), squares.permute(1, 2, 0), out=out)[:, 0]


def _kl_softmax(base: Tensor, deltas: Tensor) -> Tensor:
    # As ``kl_softmax``, whose names these are. Sums are taken of each role alone: in a matrix product the two columns
    # may be rounded apart, and a tie has to be one.
    batch, tokens, channels = base.shape
    p = torch.softmax(base, dim=-1, dtype=torch.float32)
    flat = deltas.reshape(2, batch * tokens, channels)
    shares = p.flatten(0, 1)
    centred = flat - (shares * flat).sum(-1, keepdim=True)
    shift = F.softshrink(centred.amax(-1, keepdim=True), EXP_LIMIT)  # the largest is never below 0
    both = centred.new_empty(2, *centred.shape)
    torch.expm1(centred - shift, out=both[0])
    torch.mul(both[0], centred, out=both[1])
    total, first = both.mul_(shares).sum(-1)
    rest = torch.special.xlog1py(-1.0, total).sub_(shift[..., 0])
    return torch.addcdiv(rest, first, total + 1).reshape(2, batch, tokens).mean(2).T
