"""Reading the routing map's text again, as the page does."""

from __future__ import annotations

import torch
from torch import Tensor

from lora_conductor.host.maps.codes import ALPHABET, FIRST, LEAST, PER_OCTAVE, UNKNOWN, ZERO


def decode(text: str) -> Tensor:
    """The numbers ``[4, layers]`` again; NaN where nothing was decided."""
    codes = torch.tensor([ALPHABET.index(c) for c in text], dtype=torch.float64).reshape(-1, 2)
    levels = codes @ torch.tensor([64.0, 1.0], dtype=torch.float64)
    values = torch.exp2((levels - FIRST) / PER_OCTAVE + LEAST)
    values[levels == ZERO] = 0.0
    values[levels == UNKNOWN] = torch.nan
    return values.reshape(-1, 4).T
