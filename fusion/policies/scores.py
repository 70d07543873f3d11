"""How far a LoRA moves a layer's features: the scores that routing is decided by.

Every score takes ``base`` ``[..., tokens, channels]`` (the layer's output without LoRAs) and ``delta`` (what LoRAs add
to it), which may have more dimensions in front, such as one for the LoRAs. It gives float32 values ``[...]``, one per
sample and LoRA for ``[2, batch, tokens, channels]``. Larger means moved further.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Score = Callable[[Tensor, Tensor], Tensor]
LEAST_NORM = 1e-8  # of a token's features, so that they have a direction
EXP_LIMIT = 60.0  # its exponential, and sums of many, are still finite in float32


def kl_softmax(base: Tensor, delta: Tensor) -> Tensor:
    """``KL(softmax(F + h) || softmax(F))`` over channels, averaged over tokens.

    Eq. 11-12 of arXiv 2602.15539 with the adapted distribution first. The paper feeds raw features to KL; where it is
    silent we take the softmax over channels (torch's own idiom for ``kl_div``) and the mean over tokens.
    """
    # With p = softmax(F), d = h - sum(p h) and s = sum(p expm1(d)):  KL = sum(p d expm1(d)) / (1 + s) - log1p(s). The
    # difference of two log-softmaxes would leave nothing but rounding of a faint delta, whose KL is of second order. It
    # is right where a delta is so large that its exponential is no number.
    base, delta = base.float(), delta.float()
    log_p, log_q = torch.log_softmax(base, dim=-1), torch.log_softmax(base + delta, dim=-1)
    p = log_p.exp()
    centred = delta - (p * delta).sum(-1, keepdim=True)
    grown = torch.expm1(centred.clamp_max(EXP_LIMIT))
    growth = p * grown
    # As sum(p d) is 0: of expm1(d) - d, whose leading terms cancel where d is small.
    series = centred.square() * (1 / 2 + centred * (1 / 6 + centred / 24))
    total = (p * torch.where(centred.abs() < 0.05, series, grown - centred)).sum(-1)
    fine = (growth * centred).sum(-1) / (1 + total) - torch.log1p(total)
    coarse = (log_q.exp() * (log_q - log_p)).sum(-1)
    return torch.where(centred.amax(-1) > EXP_LIMIT, coarse, fine).mean(-1)


def half_variance(base: Tensor, delta: Tensor) -> Tensor:
    """``Var_p(h) / 2`` with ``p = softmax(F)``: the second-order form of :func:`kl_softmax`.

    Within 1% of the KL while ``|h| < 0.5 |F|``.
    """
    p = torch.softmax(base.float(), dim=-1)
    delta = delta.float()
    centred = delta - (p * delta).sum(-1, keepdim=True)  # E[h^2] - E[h]^2 cancels where one channel has all of p
    return 0.5 * (p * centred.square()).sum(-1).mean(-1)


def standardised_kl(base: Tensor, delta: Tensor) -> Tensor:
    """:func:`kl_softmax` after standardising each token of ``base`` (the same affine map goes to ``base + delta``).

    A few massive activations make the raw softmax all but one-hot and its KL noise; per-token standardisation keeps
    the comparison meaningful.
    """
    base, delta = base.float(), delta.float()
    std = base.std(-1, keepdim=True, correction=0).clamp_min(1e-6)
    return kl_softmax((base - base.mean(-1, keepdim=True)) / std, delta / std)


def relative_energy(base: Tensor, delta: Tensor) -> Tensor:
    """``||h||^2 / ||F||^2`` of a sample: no softmax, insensitive to outlier channels of ``F``."""
    base, delta = base.float(), delta.float()
    return delta.square().sum((-2, -1)) / base.square().sum((-2, -1)).clamp_min(1e-12)


def jensen_shannon(base: Tensor, delta: Tensor) -> Tensor:
    """Jensen-Shannon divergence of ``softmax(F + h)`` and ``softmax(F)`` over channels, averaged over tokens."""
    base, delta = base.float(), delta.float()
    log_p, log_q = torch.log_softmax(base, dim=-1), torch.log_softmax(base + delta, dim=-1)
    # The log of each share of their mean: log(2 q / (p + q)) is log 2 + log sigmoid(log q - log p).
    x = log_q - log_p
    of_p, of_q = F.logsigmoid(-x) + math.log(2), F.logsigmoid(x) + math.log(2)
    return 0.5 * (log_p.exp() * of_p + log_q.exp() * of_q).sum(-1).mean(-1)


def cosine_distance(base: Tensor, delta: Tensor) -> Tensor:
    """``1 - cos(F + h, F)`` of each token over channels, averaged over tokens.

    As ``||u - v||^2 / 2`` of both at length 1, which a small angle does not cancel out of. What is exactly 0 stays so.
    """
    moved, base = (f / f.norm(dim=-1, keepdim=True).clamp_min(LEAST_NORM) for f in (base.float() + delta, base.float()))
    return 0.5 * (moved - base).square().sum(-1).mean(-1)


SCORES: dict[str, Score] = {
    "kl": kl_softmax,
    "half_variance": half_variance,
    "js": jensen_shannon,
    "cosine": cosine_distance,
    "standardised_kl": standardised_kl,
    "energy": relative_energy,
}
