"""OFT and BOFT: rotations of the output channels.

The delta is the adapted output less the base output, taken from the base output alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .base import Bypass, DeltaError, NotFiniteError, Place, PlacedDelta, Slices, finite, fits, frozen, like
from .geometry import Geometry


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


def cayley(blocks: Tensor, alpha: float) -> Tensor:
    """``(I + Q)(I - Q)^-1`` with ``Q = blocks - blocks^T``, its norm held to ``alpha`` where that is positive.

    Args:
        blocks: ``[..., b, b]``.
        alpha: bound of the Frobenius norm of all blocks together (COFT).

    Raises:
        DeltaError: there is no such rotation in float32.
    """
    q = blocks.float() - blocks.float().transpose(-1, -2)
    norm = torch.linalg.vector_norm(q) + 1e-8
    if alpha > 0 and norm > alpha:
        q = q * alpha / norm
    eye = torch.eye(q.shape[-1])
    rotations = (eye + q) @ torch.linalg.inv_ex(eye - q).inverse
    if not bool(torch.isfinite(rotations).all()):
        raise DeltaError("its blocks are too large to be rotations")
    return rotations


def oft(place: Place, blocks: Tensor, alpha: float | None) -> RotationDelta:
    """OFT in diagonal blocks. The file's ``rescale`` is not used: core does not either.

    Args:
        place: of the weight.
        blocks: ``[blocks, b, b]``.
        alpha: the constraint (see :func:`cayley`); none if None.

    Raises:
        DeltaError: shapes do not fit, or NaN or infinity.
    """
    _check_rotation(place, "OFT", blocks, alpha)
    fits(blocks.shape[0] * blocks.shape[1] == place.shape[0], "OFT", place.shape, blocks)
    return RotationDelta(place, cayley(blocks, alpha or 0.0))


def boft(place: Place, blocks: Tensor, rescale: Tensor | None, alpha: float) -> ButterflyDelta:
    """BOFT: butterfly stages of small rotations.

    Args:
        place: of the weight.
        blocks: ``[stages, blocks, b, b]``.
        rescale: ``[out, 1, ...]``, as many dimensions as the weight, or None.
        alpha: the constraint (see :func:`cayley`).

    Raises:
        DeltaError: shapes do not fit, or NaN or infinity.
    """
    _check_rotation(place, "BOFT", blocks, alpha)
    stages, count, b = blocks.shape[:3]
    out = place.shape[0]
    good = count * b == out and b % 2 == 0 and stages > 0 and out % (2 * 2 ** (stages - 1) * (b // 2)) == 0
    fits(good, "BOFT", place.shape, blocks)
    if rescale is not None:
        finite(rescale=rescale)
        fits(tuple(rescale.shape) == (out, *[1] * (len(place.shape) - 1)), "a BOFT rescale", place.shape, rescale)
        rescale = rescale.float().flatten()
    return ButterflyDelta(place, cayley(blocks, alpha), rescale)


def _check_rotation(place: Place, what: str, blocks: Tensor, alpha: float | None) -> None:
    finite(oft_blocks=blocks)
    fits(blocks.numel() > 0 and blocks.shape[-1] == blocks.shape[-2], what, place.shape, blocks)
    if alpha is not None and not math.isfinite(alpha):
        raise NotFiniteError(f"alpha {alpha} is not a finite number")


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
