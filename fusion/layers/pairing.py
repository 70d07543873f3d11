"""How both roles meet in a segment: what is known of it before anything runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

# Log ratios of energies. Files trained apart are within the first in nearly every layer (twelve times the norm); beyond
# the second (four hundred times) one of them is as good as not there.
ALIKE, APART = 5.0, 12.0


def likeness(log_ratio: Tensor) -> Tensor:
    """How far two deltas are of one kind, given the log ratio of their energies: 1 near 0, 0 where one is faint."""
    share = ((APART - log_ratio.abs()) / (APART - ALIKE)).clamp(0, 1)
    return share.square() * (3 - 2 * share)


@dataclass(frozen=True)
class Pairing:
    """What the files and the user's strengths say of a segment.

    Attributes:
        strengths: the user's, of subject and style; of several LoRAs of a role the root of the sum of their squares.
        loudness: log ratio of the energies ``||dW||_F^2`` of subject and style at equal strengths; None where the
            weights do not tell, because a delta depends on the base weight.
    """

    strengths: tuple[float, float] = (1.0, 1.0)
    loudness: float | None = 0.0

    @cached_property
    def in_strength(self) -> float:
        """How far both are turned up: 0 where either is off, 1 where neither is below 1 or both are alike.

        ``min(1, s_c, s_s) / min(1, max(s_c, s_s))``.
        """
        least, most = sorted(map(abs, self.strengths))
        return min(1.0, least) / min(1.0, most) if most else 0.0

    @cached_property
    def turned(self) -> float:
        """How much louder in energy the user made the subject than the style, as a log ratio."""
        subject, style = self.strengths
        return 2 * math.log(abs(subject / style)) if subject and style else 0.0

    @cached_property
    def in_kind(self) -> float:
        """:func:`likeness` of the files; 1 where it is not known."""
        if self.loudness is None:
            return 1.0
        return float(likeness(torch.tensor(self.loudness, dtype=torch.float64)))

    @cached_property
    def presence(self) -> float:
        """How far both are there, 0 to 1: what is done because two LoRAs meet is done that far."""
        return self.in_strength * self.in_kind
