"""How often the LoRAs' effect counts in the picture: by what the negative prompt's pass gets of them, and by weight.

Classifier-free guidance at scale ``s`` gives ``negative + s (positive - negative)``. Where LoRAs change the positive
pass by ``d`` and the negative one by ``a d``, the picture is changed by ``(s - a (s - 1)) d``: once when both passes
have the LoRAs (a = 1), ``s`` times when the negative pass has none. The more of an effect is guidance's, the less
weight it takes, and less weight asks less of a layer that its LoRA was not trained for. So from an emphasis of `ALL_BY`
on the negative pass gets nothing of the LoRAs, and both weights in the positive one are what is asked over ``s``: less
than whole where guidance is strong, more where a user asks for more than it has to give (at CFG 1, more than once).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ..layers import Batch, Weight
from ..roles import ROLES

ALL_BY = 2.5
"""The emphasis from which on the negative pass gets no LoRA, at any scale that reaches it. From 1 on, where both passes
get the same, whole weights with a part of them left out there go over into that."""


def negative_share(emphasis: float, cfg: float) -> float:
    """The share of the positive pass's weights that the negative one gets.

    Args:
        emphasis: how often the LoRAs' effect is to count. Below 1 the negative pass gets more than the positive one, at
            most twice as much.
        cfg: scale of the classifier-free guidance. At 1 there is no negative pass, and the effect counts once.

    Returns:
        0 to 2.
    """
    if cfg <= 1:
        return 1.0
    with_whole_weights = (cfg - emphasis) / (cfg - 1)
    if emphasis <= 1:
        return min(with_whole_weights, 2.0)
    along = min((emphasis - 1) / (min(cfg, ALL_BY) - 1), 1.0)
    return (1 - along) * (with_whole_weights + along)


def effective(emphasis: float, cfg: float) -> float:
    """How often the LoRAs' effect counts in the picture where no weight is more than whole."""
    return min(emphasis, max(cfg, 1.0))


def push(emphasis: float, cfg: float) -> float:
    """How many times their weights the LoRAs need beside that share for their effect to count ``emphasis`` times."""
    by_guidance = _by_guidance(emphasis, cfg)
    return 1.0 if math.isclose(by_guidance, emphasis) else emphasis / by_guidance


def _by_guidance(emphasis: float, cfg: float) -> float:
    """How often the effect counts by the negative pass's share alone."""
    return cfg - negative_share(emphasis, cfg) * (cfg - 1) if cfg > 1 else 1.0


class Emphasis:
    """What the samples of one model call get of their weights.

    Args:
        batch: what the call computes.
        share: of the negative ones, beside the others'.
        push: of all.
    """

    def __init__(self, batch: Batch = Batch(), share: float = 1.0, push: float = 1.0) -> None:  # noqa: B008 - frozen
        self.batch = batch
        # What is of no pass is in all of them: guidance does not multiply it, and nothing is turned down for that.
        self.of_no_pass = max(push, 1.0)
        # Perp-Neg's guider calls what it starts from "empty_negative_prompt".
        self.shares = tuple(push * share if "negative" in key else push for key in batch.keys)
        self._is_one = share == push == 1.0

    def of(self, weights: dict[str, Weight], roles: Sequence[str], features: Tensor) -> dict[str, Weight]:
        """The weights of a segment's roles as they are to be used.

        Args:
            weights: by role; 1 where one is missing.
            roles: of the segment.
            features: the segment's, ``[batch, tokens, channels]``.
        """
        if self._is_one:
            return weights
        if len(set(self.shares)) == 1:
            return {role: weights.get(role, 1.0) * self.shares[0] for role in roles}
        odd = features.shape[0] % len(self.shares) != 0
        if odd and self.of_no_pass == 1.0:
            return weights
        factor: Weight = self.of_no_pass if odd else self._factor(features)
        found = {role: weights.get(role, 1.0) for role in roles}
        return {role: w * factor if isinstance(w, Tensor) or w else w for role, w in found.items()}

    def pair_of(self, weights: Mapping[str, Weight], features: Tensor) -> Tensor | None:
        """The same of both roles ``[batch, 2]``, once for all layers: where prompts differ and weights are numbers."""
        subject, style = (weights.get(role, 1.0) for role in ROLES)
        if len(set(self.shares)) == 1 or features.shape[0] % len(self.shares):
            return None
        if isinstance(subject, Tensor) or isinstance(style, Tensor):
            return None
        return _pair_of(subject, style, *self.place(features))

    def of_pair(self, pair: Tensor) -> Tensor:
        """Both weights ``[batch, 2]`` of a segment as they are to be used."""
        return self.of_pairs(pair[None], pair)[0]

    def of_pairs(self, pairs: Tensor, features: Tensor) -> Tensor:
        """The same for many segments ``[segments, batch or 1, 2]`` with features of one batch."""
        if self._is_one:
            return pairs
        if len(set(self.shares)) == 1:
            return pairs * self.shares[0]
        if features.shape[0] % len(self.shares):
            return pairs if self.of_no_pass == 1.0 else pairs * self.of_no_pass
        return pairs * self._factor(features)[:, 0]

    def place(self, features: Tensor) -> tuple[tuple[float, ...], int, int, torch.device]:
        """All that what is done to weights for features ``[batch, tokens, channels]`` depends on."""
        return self.shares, features.shape[0], self.batch.repeats, features.device

    def _factor(self, features: Tensor) -> Tensor:
        """``[batch, 1, 1]`` float32."""
        return _factor_of(*self.place(features))


@lru_cache(maxsize=256)
def _pair_of(
    subject: float, style: float, shares: tuple[float, ...], rows: int, repeats: int, device: torch.device
) -> Tensor:
    """Both weights of every row, ``[batch, 2]`` float32."""
    factor = _factor_of(shares, rows, repeats, device)[:, 0]
    with torch.inference_mode(False), torch.no_grad():
        return torch.cat([factor * subject, factor * style], dim=1)


@lru_cache(maxsize=64)
def _factor_of(shares: tuple[float, ...], rows: int, repeats: int, device: torch.device) -> Tensor:
    """Filled on the device: nothing is copied there. The same for all calls of a run."""
    # Not an inference tensor, so that calls that are differentiated can use it as well.
    with torch.inference_mode(False):
        each = rows // len(shares) // repeats
        once = torch.cat([torch.full((each,), share, device=device) for share in shares])
        return once.repeat(repeats)[:, None, None]
