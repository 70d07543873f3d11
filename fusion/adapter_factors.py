"""From the factors in a file to the delta of one weight, checked against the weight's shape."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .adapters import ButterflyDelta, DenseDelta, GLoRADelta, KroneckerDelta, Place, RotationDelta
from .deltas import DeltaError, LowRankDelta


def finite(**tensors: Tensor | None) -> None:
    """Refuse NaN and infinity by name.

    Raises:
        DeltaError: a tensor holds one.
    """
    for name, tensor in tensors.items():
        if tensor is not None and not bool(torch.isfinite(tensor.float()).all()):
            raise DeltaError(f"{name} holds NaN or infinite values")


def scale_of(alpha: float | None, rank: int) -> float:
    """``alpha / rank``, or 1 without an alpha.

    Raises:
        DeltaError: alpha is no finite number, or the rank is 0.
    """
    if rank == 0:
        raise DeltaError("its rank is 0")
    scale = 1.0 if alpha is None else alpha / rank
    if not math.isfinite(scale):
        raise DeltaError(f"alpha {alpha} is not a finite number")
    return scale


def fits(condition: bool, what: str, shape: tuple[int, ...], *factors: Tensor | None) -> None:
    """Raises DeltaError with all shapes unless the condition holds."""
    if not condition:
        given = " and ".join(str(tuple(f.shape)) for f in factors if f is not None)
        raise DeltaError(f"{what} of shape {given} does not make a weight of shape {tuple(shape)}")


def weight_difference(place: Place, weight: Tensor) -> DenseDelta:
    """A ``diff`` patch: the dense ``dW``.

    Raises:
        DeltaError: it has another shape than the weight, or holds NaN or infinity.
    """
    fits(tuple(weight.shape) == place.shape, "a difference", place.shape, weight)
    finite(diff=weight)
    return DenseDelta(place, weight)


def loha(
    place: Place, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], cores: Any, alpha: float | None
) -> LowRankDelta | DenseDelta:
    """LoHa: ``dW = (w1a w1b) * (w2a w2b)``, the product entry by entry (FedPara, arXiv 2108.06098).

    The entrywise product of matrices of rank ``r1`` and ``r2`` has rank ``r1 r2`` with the Khatri-Rao products of the
    factors; where that is cheaper than the dense matrix it is kept so.

    Args:
        place: of the weight ``[out, in, *kernel]``.
        first, second: ``(a [out, rank], b [rank, in * kernel])``; with cores ``(a [rank, out], b [rank, in])``.
        cores: Tucker cores ``(t1, t2)`` ``[rank, rank, *kernel]``, or None.
        alpha: the file's; the scale is ``alpha / b1.shape[0]``.

    Raises:
        DeltaError: shapes do not fit, or NaN or infinity.
    """
    finite(hada_w1_a=first[0], hada_w1_b=first[1], hada_w2_a=second[0], hada_w2_b=second[1])
    halves = []
    for (a, b), core in zip((first, second), cores or (None, None), strict=True):
        up, down = _with_core(place.shape, "LoHa", a, b, core)
        fits(up.shape[0] == place.shape[0] and down[0].numel() == math.prod(place.shape[1:]), "LoHa", place.shape, a, b)
        halves.append((up, down.flatten(1)))
    scale = scale_of(alpha, first[1].shape[0])
    (up1, down1), (up2, down2) = halves
    rank, out, width = up1.shape[1] * up2.shape[1], place.shape[0], down1.shape[1]
    if rank * (out + width) <= out * width:
        up = (up1[:, :, None] * up2[:, None, :]).flatten(1)
        down = (down1[:, None] * down2[None]).flatten(0, 1).reshape(rank, *place.shape[1:])
        return LowRankDelta(down, up, scale, place.out_start, place.in_start)
    return DenseDelta(place, ((up1 @ down1) * (up2 @ down2)).reshape(place.shape), scale)


def _with_core(shape: tuple[int, ...], what: str, a: Tensor, b: Tensor, core: Tensor | None) -> tuple[Tensor, Tensor]:
    """``(up [out, rank], down [rank, in, *kernel])`` of a factor pair, a Tucker core folded into ``down``."""
    if core is None:
        fits(a.ndim == 2 and b.ndim == 2 and a.shape[1] == b.shape[0] > 0, what, shape, a, b)
        return a.float(), b.float()
    finite(core=core)
    # Core knows Tucker cores of two-dimensional convolutions only.
    fits(a.ndim == 2 and b.ndim == 2 and core.ndim == 4, f"{what} with a Tucker core", shape, a, b, core)
    fits(tuple(core.shape[:2]) == (a.shape[0], b.shape[0]) and core.numel() > 0, what, shape, a, b, core)
    return a.float().T, torch.einsum("ijkl,jr->irkl", core.float(), b.float())


def lokr(
    place: Place,
    w1: Tensor | tuple[Tensor, Tensor],
    w2: Tensor | tuple[Tensor, Tensor],
    core: Tensor | None,
    alpha: float | None,
) -> KroneckerDelta | DenseDelta:
    """LoKr: ``dW = w1 kron w2`` (KronA, arXiv 2212.10650, as LyCORIS writes it).

    Args:
        place: of the weight.
        w1: ``[a, b]``, whole or as factors.
        w2: ``[c, d, *kernel]``, whole or as factors ``([c, rank], [rank, d * kernel])``.
        core: Tucker core of ``w2``: its factors are then ``([rank, c], [rank, d])``.
        alpha: the file's. The scale is ``alpha / rank`` of the last factor pair there is; 1 if both are whole.

    Raises:
        DeltaError: shapes do not fit, or NaN or infinity.
    """
    rank = None
    if isinstance(w1, tuple):
        finite(lokr_w1_a=w1[0], lokr_w1_b=w1[1])
        fits(w1[0].ndim == w1[1].ndim == 2 and w1[0].shape[1] == w1[1].shape[0], "LoKr w1", place.shape, *w1)
        rank, w1 = w1[1].shape[0], w1[0].float() @ w1[1].float()
    up: Tensor | None = None
    if isinstance(w2, tuple):
        finite(lokr_w2_a=w2[0], lokr_w2_b=w2[1])
        rank = w2[1].shape[0]
        up, w2 = _with_core(place.shape, "LoKr w2", *w2, core)
    finite(lokr_w1=w1, lokr_w2=w2)
    # Whatever the rank, alpha of whole matrices is not used.
    scale = 1.0 if rank is None else scale_of(alpha, rank)
    width = up.shape[0] if up is not None else w2.shape[0]
    runs_fit = (
        w1.ndim == 2
        and w2.ndim >= 2
        and w1.numel() > 0
        and w1.shape[0] * width == place.shape[0]
        and place.shape[1] % w1.shape[1] == 0
        and w2[0].numel() * w1.shape[1] == math.prod(place.shape[1:])
    )
    whole = w2 if up is None else (up @ w2.flatten(1)).reshape(up.shape[0], *w2.shape[1:])
    if runs_fit and whole.ndim in (2, 4):
        return KroneckerDelta(
            place, w1, up, w2.reshape(w2.shape[0], place.shape[1] // w1.shape[1], *place.shape[2:]), scale
        )
    # Core's product of whole one- and three-dimensional kernels mixes their axes; it is what core's users get.
    fits(w1.ndim == 2 and w1.numel() * whole.numel() == math.prod(place.shape), "LoKr", place.shape, w1, w2)
    return DenseDelta(place, torch.kron(w1.float(), whole.float()).reshape(place.shape), scale)


def glora(place: Place, a1: Tensor, a2: Tensor, b1: Tensor, b2: Tensor, alpha: float | None) -> GLoRADelta:
    """GLoRA: ``dW = W a1 a2 + b1 b2``; old LyCORIS files hold it the other way round, ``W a2 a1 + b2 b1``.

    Args:
        place: of the weight ``[out, in, *kernel]``.
        a1, a2, b1, b2: the file's; which of the two forms they are shows in their shapes, as core reads them.
        alpha: the file's; the scale is ``alpha / rank``.

    Raises:
        DeltaError: shapes do not fit, or NaN or infinity.
    """
    finite(a1=a1, a2=a2, b1=b1, b2=b2)
    factors = (a1, a2, b1, b2)
    fits(all(f.ndim >= 2 for f in factors), "GLoRA", place.shape, *factors)
    old = b2.shape[1] == b1.shape[0] == a1.shape[0] == a2.shape[1]
    new = b2.shape[0] == b1.shape[1] == a1.shape[1] == a2.shape[0]
    if old and new:
        old = a2.shape[0] == place.shape[0] == place.shape[1]
    fits(old or new, "GLoRA", place.shape, *factors)
    a1, a2, b1, b2 = (f.flatten(1).float() for f in factors)
    out, width, taps = place.shape[0], place.shape[1], math.prod(place.shape[2:])
    if old:
        mix, narrow, up, down = a2, a1, b2, b1
        good = mix.shape[0] == width * taps and narrow.shape[1] == width * taps
    else:
        mix, narrow, up, down = a1, a2, b1, b2
        good = mix.shape[0] == width and narrow.shape[1] == width
    rank = mix.shape[1]
    good = good and narrow.shape[0] == rank and up.shape == (out, rank) and down.shape == (rank, width * taps)
    fits(good, "GLoRA", place.shape, *factors)
    scale = scale_of(alpha, rank)
    narrow = narrow.reshape(rank, *place.shape[1:]) if old else narrow
    return GLoRADelta(place, mix, narrow, up, down.reshape(rank, *place.shape[1:]), scale)


def cayley(blocks: Tensor, alpha: float) -> Tensor:
    """``(I + Q)(I - Q)^-1`` with ``Q = blocks - blocks^T``, its norm held to ``alpha`` where that is positive.

    Args:
        blocks: ``[..., b, b]``.
        alpha: bound of the Frobenius norm of all blocks together (COFT).
    """
    q = blocks.float() - blocks.float().transpose(-1, -2)
    norm = torch.linalg.vector_norm(q) + 1e-8
    if alpha > 0 and norm > alpha:
        q = q * alpha / norm
    eye = torch.eye(q.shape[-1])
    return (eye + q) @ torch.linalg.inv(eye - q)


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
        raise DeltaError(f"alpha {alpha} is not a finite number")
