"""How much of the LoRAs the negative prompt's pass gets, and with it how often their effect counts in the picture.

Classifier-free guidance at scale ``s`` gives ``negative + s (positive - negative)``. Where LoRAs change the positive
pass by ``d`` and the negative one by ``a d``, the picture is changed by ``(s - a (s - 1)) d``: once when both passes
have the LoRAs (a = 1), ``s`` times when the negative pass has none. Unlike larger weights, that asks nothing of a layer
that its LoRA was not trained for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..layers.batch import Batch
from ..layers.segment import Weight


def negative_share(emphasis: float, cfg: float) -> float:
    """The share of its weights that the negative pass gets, so that the LoRAs' effect counts ``emphasis`` times.

    Args:
        emphasis: 1 or more; below 1 the negative pass gets more than the positive one, at most twice as much.
        cfg: scale of the classifier-free guidance. At 1 there is no negative pass, and the effect counts once.

    Returns:
        0 to 2. At 0 the effect counts ``cfg`` times, whatever was asked for.
    """
    return min(max((cfg - emphasis) / (cfg - 1), 0.0), 2.0) if cfg > 1 else 1.0


def effective(emphasis: float, cfg: float) -> float:
    """How often the LoRAs' effect counts in the picture."""
    return cfg - negative_share(emphasis, cfg) * (cfg - 1) if cfg > 1 else 1.0


@dataclass
class Emphasis:
    """Applies a share to the negative conditions of one model call after another."""

    share: float = 1.0
    _shares: tuple[float, ...] = (1.0,)
    _factors: dict[tuple[int, torch.device], Tensor] = field(default_factory=dict)

    def open_call(self, batch: Batch) -> None:
        """A model call begins; ``batch`` says what it computes."""
        # Perp-Neg's guider calls what it starts from "empty_negative_prompt".
        shares = tuple(self.share if "negative" in key else 1.0 for key in batch.keys)
        if shares != self._shares:
            self._shares, self._factors = shares, {}

    def of(self, weights: dict[str, Weight], roles: Sequence[str], features: Tensor) -> dict[str, Weight]:
        """The weights of a segment's roles as they are to be used.

        Args:
            weights: by role; 1 where one is missing.
            roles: of the segment.
            features: the segment's, ``[batch, tokens, channels]``.
        """
        if self.share == 1.0 or features.shape[0] % len(self._shares):
            return weights
        if len(set(self._shares)) == 1:
            return {role: weights.get(role, 1.0) * self._shares[0] for role in roles}
        factor = self._factor(features)
        found = {role: weights.get(role, 1.0) for role in roles}
        return {role: w * factor if isinstance(w, Tensor) or w else w for role, w in found.items()}

    def _factor(self, features: Tensor) -> Tensor:
        """``[batch, 1, 1]`` float32, filled on the device: nothing is copied there."""
        key = features.shape[0], features.device
        if key not in self._factors:
            # Not an inference tensor, so that calls that are differentiated can use it as well.
            with torch.inference_mode(False):
                ones = torch.ones(features.shape[0], 1, 1, device=features.device)
                for part, share in zip(ones.chunk(len(self._shares)), self._shares, strict=True):
                    part.mul_(share)
            self._factors[key] = ones
        return self._factors[key]
