"""Gathering what SSR-Merge wants to know of the activations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .layers import FusedLayer
from .policies import Moments
from .roles import ROLES


@dataclass
class _Sums:
    """The joined down-projection of a segment, ranks by role, and the sums of ``z z^T`` by role, float64."""

    down: Tensor
    ranks: tuple[int, ...]
    squares: dict[str, Tensor] = field(default_factory=dict)
    tokens: int = 0


class Calibrator:
    """Sums the moments of all shared segments while the model runs with one role's LoRAs at a time."""

    def __init__(self, layers: Iterable[FusedLayer]) -> None:
        self.layers = {layer.name: layer for layer in layers if any(s.shared for s in layer.segments)}
        self._sums: dict[str, dict[str, _Sums]] = {}
        for layer in self.layers.values():
            own = self._sums[layer.name] = {}
            for segment in layer.segments:
                if segment.shared:
                    deltas = layer.segment_deltas(segment)
                    down = torch.cat([deltas.down[role] for role in ROLES])
                    own[segment.name] = _Sums(down, tuple(deltas.rank(role) for role in ROLES))

    def observe(self, role: str, layer: FusedLayer, x: Tensor) -> None:
        """Add a layer's input, ``[batch, ..., in]`` or ``[batch, in, *space]``, seen with that role's LoRAs on."""
        for sums in self._sums[layer.name].values():
            z = layer.geometry.tokens(layer.geometry.project(x.float(), sums.down.to(x.device))).flatten(0, 1)
            # The Gram matrix is all but singular and the ridge small: float64, which not every device has.
            z = z.cpu().double()
            square = z.T @ z
            sums.squares[role] = sums.squares[role] + square if role in sums.squares else square
            sums.tokens += len(z)

    def moments(self) -> dict[str, Moments]:
        """By segment; segments that did not run with every role are left out."""
        found = {}
        for own in self._sums.values():
            for name, sums in own.items():
                if len(sums.squares) == len(ROLES):
                    squares = [sums.squares[role] for role in ROLES]
                    rows = [square.split(sums.ranks)[k] for k, square in enumerate(squares)]
                    found[name] = Moments(sum(squares[1:], squares[0]), torch.cat(rows), sums.tokens)
        return found
