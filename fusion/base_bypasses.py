"""Bypasses of adapters that depend on the base weight: GLoRA, OFT, BOFT, and DoRA around any other.

Each delta is the adapted output less the base output, taken from the base output where that is enough (OFT, BOFT).
What depends on the weight itself (``W a``, row and column norms) is prepared once.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .bypasses import Bypass, frozen, like
from .geometry import Geometry

Slices = tuple[int, int, int, int]


class GLoRABypass(Bypass):
    """``dW = factor (W a1 a2 + b1 b2)`` (GLoRA, arXiv 2306.07967, as LyCORIS writes it).

    Args:
        mix: the matrix next to ``W``, ``[in, rank]``; ``[in * kernel, rank]`` where ``narrow`` holds the kernel.
        narrow: the one after it: ``[rank, in]``, or ``[rank, in, *kernel]`` (old LyCORIS files).
        up, down: ``b1 [out, rank]`` and ``b2 [rank, in, *kernel]``.
    """

    additive = False
    needs_weight = True

    def __init__(
        self, mix: Tensor, narrow: Tensor, up: Tensor, down: Tensor, factor: float, slices: Slices, dtype: torch.dtype
    ) -> None:
        super().__init__(*slices)
        # float32: these two are multiplied with the weight once, not at every call.
        self.mix, self.up = frozen(mix.float() * factor), frozen(up.float() * factor)
        self.narrow, self.down = frozen(narrow.to(dtype)), frozen(down.to(dtype))

    def prepare(self, weight: Tensor, dtype: torch.dtype) -> Any:
        return self._mixed(weight).to(dtype)

    def _mixed(self, weight: Tensor) -> Tensor:
        """``W a1``: ``[out, rank]``, or ``[out, rank, *kernel]`` where ``W`` keeps the kernel."""
        rows, mix = self.own_rows(weight), self.mix.to(weight.device)
        if self.narrow.ndim == rows.ndim:
            return rows.flatten(1) @ mix
        return torch.einsum("oi...,ir->or...", rows, mix)

    def forward(self, x: Tensor, geometry: Geometry, linear: Tensor | None, facts: Any, layer: Any) -> Tensor:
        narrow = like(self.narrow, x)
        if facts.ndim == 2:
            first = F.linear(geometry.tokens(geometry.project(x, narrow)), facts)
        else:
            first = geometry.tokens(geometry.project(torch.einsum("ri,bi...->br...", narrow, x), facts))
        hidden = geometry.tokens(geometry.project(x, like(self.down, x)))
        return first + F.linear(hidden, like(self.up, x))

    def dense(self, weight: Tensor | None = None) -> Tensor:
        assert weight is not None
        mixed, up = self._mixed(weight), self.up.to(weight.device)
        narrow, down = self.narrow.to(mixed), self.down.to(mixed)
        if mixed.ndim == 2:
            first = (mixed @ narrow.flatten(1)).reshape(mixed.shape[0], *narrow.shape[1:])
        else:
            first = torch.einsum("or...,ri->oi...", mixed, narrow)
        return first + (up @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])


class RotationBypass(Bypass):
    """OFT (arXiv 2306.07280): blocks of output channels are rotated; the delta is ``(R^T - I) W x``, block by block.

    Args:
        change: ``factor (R - I)``, ``[blocks, n, m]``: input channel n of a block to its output channel m.
    """

    additive = False
    needs_linear = True

    def __init__(self, change: Tensor, slices: Slices, dtype: torch.dtype) -> None:
        super().__init__(*slices)
        self.change = frozen(change.to(dtype))

    def forward(self, x: Tensor, geometry: Geometry, linear: Tensor | None, facts: Any, layer: Any) -> Tensor:
        assert linear is not None
        return self._turn(linear[..., self.start : self.stop], like(self.change, linear))

    def _turn(self, y: Tensor, change: Tensor) -> Tensor:
        blocks = y.unflatten(-1, change.shape[:2])
        return torch.einsum("...kn,knm->...km", blocks, change).flatten(-2)

    def dense(self, weight: Tensor | None = None) -> Tensor:
        assert weight is not None
        rows = self.own_rows(weight)
        return self._turn(rows.flatten(1).T, self.change.float().to(rows.device)).T.reshape(rows.shape)


class ButterflyBypass(Bypass):
    """BOFT (arXiv 2311.06243): a product of sparse rotations of the output channels, then a rescaling.

    Args:
        rotations: ``[stages, blocks, b, b]``, already mixed with the identity by the strength.
        rescale: ``[out]`` or None.
        factor: of the difference to the base output.
    """

    additive = False
    needs_linear = True

    def __init__(
        self, rotations: Tensor, rescale: Tensor | None, factor: float, slices: Slices, dtype: torch.dtype
    ) -> None:
        super().__init__(*slices)
        # float32: the difference of two nearly equal outputs would lose low-precision digits.
        self.rotations = frozen(rotations.float())
        self.rescale = None if rescale is None else frozen(rescale.float())
        self.factor = factor

    def forward(self, x: Tensor, geometry: Geometry, linear: Tensor | None, facts: Any, layer: Any) -> Tensor:
        assert linear is not None
        return self._turn(linear[..., self.start : self.stop].float()).to(linear.dtype)

    def _turn(self, y: Tensor) -> Tensor:
        turned, b = y, self.rotations.shape[-1]
        for stage, rotation in enumerate(self.rotations.to(y.device)):
            stride = 2**stage * (b // 2)
            # Channels that this stage mixes lie ``stride`` apart: bring them together, rotate, put them back.
            turned = turned.unflatten(-1, (-1, 2, stride)).transpose(-2, -1).flatten(-3).unflatten(-1, (-1, b))
            turned = torch.einsum("kij,...kj->...ki", rotation, turned)
            turned = turned.flatten(-2).unflatten(-1, (-1, stride, 2)).transpose(-2, -1).flatten(-3)
        if self.rescale is not None:
            turned = turned * self.rescale.to(y.device)
        return self.factor * (turned - y)

    def dense(self, weight: Tensor | None = None) -> Tensor:
        assert weight is not None
        rows = self.own_rows(weight)
        return self._turn(rows.flatten(1).T).T.reshape(rows.shape)


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
