"""Deltas of every adapter but the plain LoRA, independent of strength and precision.

Formulas are those of ComfyUI's merge (``comfy/weight_adapter``), its quirks included, so that one LoRA alone gives what
core's loader gives; where LyCORIS or a paper differ it is said.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .base_bypasses import ButterflyBypass, DoRABypass, GLoRABypass, RotationBypass
from .bypasses import Bypass, DenseBypass, KroneckerBypass


class Delta(Protocol):
    """What one file does to one weight or a slice of it."""

    @property
    def out_start(self) -> int:
        """First output channel."""
        ...

    @property
    def out_stop(self) -> int:
        """One past the last."""
        ...

    def bypass(self, outer: float, inner: float, dtype: torch.dtype) -> Bypass:
        """The module that computes it.

        Args:
            outer: the strength of the delta as a whole.
            inner: the strength inside it, for rotations, which core interpolates as well (1 elsewhere).
            dtype: to compute in.
        """
        ...


@dataclass(frozen=True)
class Place:
    """The slice of a weight ``[out, in, *kernel]`` that a delta is for."""

    shape: tuple[int, ...]
    out_start: int = 0
    in_start: int = 0

    @property
    def slices(self) -> tuple[int, int, int, int]:
        return self.out_start, self.out_start + self.shape[0], self.in_start, self.shape[1]


@dataclass(frozen=True)
class PlacedDelta:
    """Base of the deltas here."""

    place: Place

    @property
    def out_start(self) -> int:
        return self.place.out_start

    @property
    def out_stop(self) -> int:
        return self.place.out_start + self.place.shape[0]


@dataclass(frozen=True)
class DenseDelta(PlacedDelta):
    """``dW = scale * weight`` with ``weight`` ``[out, in, *kernel]``."""

    weight: Tensor
    scale: float = 1.0

    def bypass(self, outer: float, inner: float, dtype: torch.dtype) -> Bypass:
        return DenseBypass(self.weight.float() * (self.scale * outer), self.place.slices, dtype)


@dataclass(frozen=True)
class KroneckerDelta(PlacedDelta):
    """``dW = scale * w1 kron w2``, ``w2 = up down`` or whole (see :class:`.bypasses.KroneckerBypass`)."""

    w1: Tensor
    up: Tensor | None
    down: Tensor
    scale: float = 1.0

    def bypass(self, outer: float, inner: float, dtype: torch.dtype) -> Bypass:
        up = None if self.up is None else self.up.float()
        w1 = self.w1.float() * (self.scale * outer)
        return KroneckerBypass(w1, up, self.down.float(), self.place.slices, dtype)


@dataclass(frozen=True)
class GLoRADelta(PlacedDelta):
    """``dW = scale * (W mix narrow + up down)`` (see :class:`.base_bypasses.GLoRABypass`)."""

    mix: Tensor
    narrow: Tensor
    up: Tensor
    down: Tensor
    scale: float = 1.0

    def bypass(self, outer: float, inner: float, dtype: torch.dtype) -> Bypass:
        factors = (self.mix, self.narrow, self.up, self.down)
        return GLoRABypass(*factors, self.scale * outer, self.place.slices, dtype)


@dataclass(frozen=True)
class RotationDelta(PlacedDelta):
    """OFT: ``dW = scale * (R^T - I) W`` in blocks. Core multiplies by the strength twice; so do we.

    ``rotations`` is ``[blocks, n, m]``.
    """

    rotations: Tensor
    scale: float = 1.0

    def bypass(self, outer: float, inner: float, dtype: torch.dtype) -> Bypass:
        change = self.rotations - torch.eye(self.rotations.shape[-1])
        return RotationBypass(change * (self.scale * outer * inner), self.place.slices, dtype)


@dataclass(frozen=True)
class ButterflyDelta(PlacedDelta):
    """BOFT: ``dW = scale * (Q W - W)``; core interpolates every stage by the strength, and the difference too.

    ``rotations`` is ``[stages, blocks, b, b]``, ``rescale`` ``[out]`` or None.
    """

    rotations: Tensor
    rescale: Tensor | None = None
    scale: float = 1.0

    def bypass(self, outer: float, inner: float, dtype: torch.dtype) -> Bypass:
        mixed = self.rotations * inner + (1 - inner) * torch.eye(self.rotations.shape[-1])
        return ButterflyBypass(mixed, self.rescale, self.scale * outer, self.place.slices, dtype)


@dataclass(frozen=True)
class DoRADelta:
    """DoRA around another delta (see :class:`.base_bypasses.DoRABypass`). ``magnitude`` is ``[out]`` or ``[in]``."""

    inside: Delta
    magnitude: Tensor
    on_output: bool

    @property
    def out_start(self) -> int:
        return self.inside.out_start

    @property
    def out_stop(self) -> int:
        return self.inside.out_stop

    def bypass(self, outer: float, inner: float, dtype: torch.dtype) -> Bypass:
        return DoRABypass(self.inside.bypass(1.0, inner, dtype), self.magnitude, self.on_output, outer)


def densified(delta: Delta, place: Place) -> DenseDelta:
    """An additive delta as its dense matrix: cheapest for grouped convolutions, whose weights are thin."""
    return DenseDelta(place, delta.bypass(1.0, 1.0, torch.float32).dense())
