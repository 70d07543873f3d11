"""Scores of both roles at once, by few operations: those of :mod:`.scores`, for the layers of a running model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .scores import LEAST_NORM, SCORES

# Of a log share: its exponential is a number, and so is that of its opposite.
LEAST_LOG = -80.0


@dataclass(frozen=True)
class OfMoved:
    """A score that compares the features with what each role makes of them.

    Attributes:
        before, after: copies of the features that it wants before and after the moved ones.
        score: of ``[before + 2 + after, batch, tokens, channels]`` float32, which it may write to, ``[2, batch]``: the
            sum over tokens.
        factor: what that is to be multiplied by, besides the share of a token.
    """

    before: int
    after: int
    score: Callable[[Tensor], Tensor]
    factor: float = 1.0


def _kl(moved: Tensor) -> Tensor:
    # With q the moved softmax and x = log p - log q:  KL(q || p) = sum(q (expm1(x) - x)), in which no term is below 0
    # and the first order, all rounding where a delta is faint, is taken out of each. Where q is as good as nothing, the
    # bound keeps q expm1(x) = p - q a number.
    logs = torch.log_softmax(moved, dim=-1)
    log_q = logs[1:].clamp_min_(LEAST_LOG)
    x = logs[0] - log_q
    return _dot(log_q.exp(), torch.expm1(x).sub_(x))


def _js(moved: Tensor) -> Tensor:
    # As ``jensen_shannon``; between copies of p on both sides of q, one difference gives x and -x.
    logs = torch.log_softmax(moved, dim=-1)
    shares = F.logsigmoid(logs[2:] - logs[:4]).add_(math.log(2))
    return _dot(logs[2:].exp(), shares).unflatten(0, (2, 2)).sum(0)


def _cosine(moved: Tensor) -> Tensor:
    # 1 - cos(u, v) = ||u - v||^2 / 2 for vectors of length 1.
    unit = moved.div_(torch.linalg.vector_norm(moved, dim=-1, keepdim=True).clamp_min_(LEAST_NORM))
    return torch.linalg.vector_norm(unit[1:] - unit[0], dim=(2, 3)).square_()


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """Over tokens and channels of ``[n, batch, tokens, channels]``, ``[n, batch]``. Each on its own: in a product of
    matrices two columns may be rounded apart, and a tie has to be one."""
    flat = one.flatten(2).flatten(0, 1), other.flatten(2).flatten(0, 1)
    return torch.bmm(flat[0][:, None], flat[1][..., None]).view(one.shape[:2])


OF_MOVED = {"kl": OfMoved(1, 0, _kl), "js": OfMoved(2, 2, _js, 0.5), "cosine": OfMoved(1, 0, _cosine, 0.5)}
"""By name; the others are asked of what is added (:func:`scores_of_pair`)."""


def scores_of_moved(name: str, moved: Tensor, into: Tensor | None = None) -> tuple[Tensor, float]:
    """A score of ``OF_MOVED`` for both roles.

    Args:
        name: of the score.
        moved: ``[before + 2 + after, batch, tokens, channels]`` float32; it may be written to.
        into: float32 ``[batch, 2]``, where they are put.

    Returns:
        ``[batch, 2]`` float32, and what they are to be multiplied by.
    """
    asked = OF_MOVED[name]
    found = asked.score(moved).T
    return (found if into is None else into.copy_(found)), asked.factor / moved.shape[2]


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
    found = SCORES[name](base, deltas).T
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
