"""Numbers of the routing map as text: two characters each, for events and for what the page keeps.

A code is 0 for "not decided", 1 for zero, and above that the logarithm of the number, to within half a percent. One is
met exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
CHARACTERS = torch.tensor(list(ALPHABET.encode("ascii")), dtype=torch.uint8)
LEAST, PER_OCTAVE = -40, 75  # 4094 levels from 2^-40 to 2^14.5
UNKNOWN, ZERO, FIRST, LAST = 0, 1, 2, 4095


def encode(values: Tensor) -> str:
    """Text for non-negative numbers ``[2 roles of weights then 2 of scores, layers]``, layer by layer.

    Numbers beyond the range are moved to its ends.
    """
    values = values.double().T.flatten()
    levels = ((values.clamp_min(2.0**LEAST).log2() - LEAST) * PER_OCTAVE).round() + FIRST
    codes = levels.clamp(FIRST, LAST).nan_to_num(UNKNOWN).long()
    codes[values <= 0] = ZERO
    pairs = torch.stack([codes // 64, codes % 64], -1).flatten()
    return bytes(CHARACTERS[pairs].tolist()).decode("ascii")
