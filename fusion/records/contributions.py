"""Who drew how much: weights times what the LoRAs do in a layer, as shares of energy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Effects:
    """How far each LoRA moves a layer before it is weighted, at the user's strengths.

    Attributes:
        measured: whether the policy's scores are those energies; else the files stand for them.
        loudness: by layer, log ratio of the energies of subject's and style's files, ``||s dW||_F^2``.
    """

    measured: bool = False
    loudness: Mapping[str, float] = field(default_factory=dict)

    def of(self, layers: Sequence[str]) -> Tensor:
        """`loudness` ``[layers]`` float64; 0 where it is not known."""
        return torch.tensor([self.loudness.get(name, 0.0) for name in layers], dtype=torch.float64)


UNKNOWN = Effects()


def contributions(weights: Tensor, scores: Tensor, layers: Sequence[str], effects: Effects) -> Tensor:
    """Subject's share of the energy that both LoRAs add, ``w_c^2 e_c / (w_c^2 e_c + w_s^2 e_s)``.

    Args:
        weights, scores: ``[role, layer, step]``, subject first; NaN where nothing was decided.
        layers: names.
        effects: what the energies ``e`` are.

    Returns: ``[layer, step]``, 0 to 1; a half where both add nothing, NaN where nothing was decided.
    """
    loudness = effects.of(layers)[:, None].expand(weights.shape[1:])
    if effects.measured:
        both_moved = (scores > 0).all(0)
        logs = scores.double().clamp_min(1e-300).log()
        loudness = torch.where(both_moved, logs[0] - logs[1], loudness)
    subject, style = (weights.double().square() * torch.stack([loudness / 2, -loudness / 2]).exp()).unbind()
    total = subject + style
    return torch.where(total > 0, subject / total, torch.where(total.isnan(), total, 0.5))
