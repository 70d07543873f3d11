"""A layer with the LoRAs of one role alone."""

from __future__ import annotations

import copy
from dataclasses import replace

from .layers import FusedLayer


def only(layer: FusedLayer, role: str) -> FusedLayer:
    """The layer with the branches of one role; its tensors are the same ones, wherever they are moved."""
    alone = copy.copy(layer)
    alone.segments = [
        replace(
            segment,
            branches={r: branches for r, branches in segment.branches.items() if r == role},
            bypasses={r: bypasses for r, bypasses in segment.bypasses.items() if r == role},
        )
        for segment in layer.segments
        if role in segment.roles
    ]
    return alone
