"""DoRA around any other adapter.

What depends on the base weight alone (row and column norms) is prepared once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .base import Bypass, Delta, frozen
from .geometry import Geometry


@dataclass(frozen=True)
class DoRADelta:
    """DoRA around another delta (see :class:`DoRABypass`). ``magnitude`` is ``[out]`` or ``[in]``."""

    inside: Delta
    magnitude: Tensor
    on_output: bool

    @property
    def out_start(self) -> int:
        return self.inside.out_start

    @property
    def out_stop(self) -> int:
        return self.inside.out_stop

    @property
    def is_zero(self) -> bool:
        return False  # its magnitude acts without the delta inside, too

    def bypass(self, outer: float, inner: float, dtype: torch.dtype) -> Bypass:
        return DoRABypass(self.inside.bypass(1.0, inner, dtype), self.magnitude, self.on_output, outer)


class DoRABypass(Bypass):
    """DoRA (arXiv 2402.09353) around another adapter: ``W' = s (W + dW)``, with ``s = magnitude / norm``.

    As core computes it: on the output axis the norm is that of the base weight's rows, on the input axis that of the
    adapted weight's columns; the strength interpolates between ``W`` and ``W'``.

    Args:
        inner: the adapter inside, at full strength.
        magnitude: ``[out]`` or ``[in]``.
        on_output: which of the two.
        strength: of the whole.
    """

    additive = False
    needs_weight = True
    needs_linear = True

    def __init__(self, inner: Bypass, magnitude: Tensor, on_output: bool, strength: float) -> None:
        super().__init__(inner.start, inner.stop, inner.in_start, inner.in_width)
        self.inner = inner
        self.magnitude = frozen(magnitude.float())
        self.on_output, self.strength = on_output, strength

    def prepare(self, weight: Tensor, dtype: torch.dtype) -> Any:
        scale = self._scale(weight)
        # On the output axis the strength goes the same way as the scale: one rounding less at every call.
        strength = self.strength if self.on_output else 1.0
        return ((scale - 1) * strength).to(dtype), (scale * strength).to(dtype), self.inner.prepare(weight, dtype)

    def _scale(self, weight: Tensor) -> Tensor:
        rows = self.own_rows(weight)
        if self.on_output:
            norm = rows.flatten(1).norm(dim=1)
        else:
            norm = (rows + self.inner.dense(weight).to(rows)).transpose(0, 1).flatten(1).norm(dim=1)
        return self.magnitude.to(rows.device) / (norm + torch.finfo(torch.float32).eps)

    def forward(self, x: Tensor, geometry: Geometry, linear: Tensor | None, facts: Any, layer: Any) -> Tensor:
        assert linear is not None
        excess, scale, inner_facts = facts
        if self.on_output:
            delta = self.inner(x, geometry, linear, inner_facts, layer) * scale
            return torch.addcmul(delta, linear[..., self.start : self.stop], excess)
        # W' x = (W + dW) (s x): one more pass through the base layer, of what the scale changes.
        along = (-1, *[1] * len(geometry.kernel))
        moved = layer.without_bias(geometry.tokens(layer.forward(x * excess.reshape(along))), x)
        delta = self.inner(x * scale.reshape(along), geometry, linear + moved, inner_facts, layer)
        return (delta + moved[..., self.start : self.stop]) * self.strength

    def dense(self, weight: Tensor | None = None) -> Tensor:
        assert weight is not None
        rows, scale = self.own_rows(weight), self._scale(weight)
        along = (-1, *[1] * (rows.ndim - 1)) if self.on_output else (1, -1, *[1] * (rows.ndim - 2))
        adapted = (rows + self.inner.dense(weight).to(rows)) * scale.reshape(along)
        return self.strength * (adapted - rows)
