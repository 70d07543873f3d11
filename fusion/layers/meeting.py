"""How two low-rank deltas of the same channels meet: how alike they are, and how many of their directions they share.

All of it follows from Gram matrices of the factors, of the size of their ranks; no delta is ever made dense.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from ..roles import ROLES
from .segment import SegmentDeltas

# Of a delta's largest singular value: what is fainter is no direction of it.
FAINTEST = 1e-2


@dataclass(frozen=True)
class Meeting:
    """How both roles meet in a segment. With ``D = U S V^T`` of each, directions of singular values below
    :data:`FAINTEST` of the largest left out,

        cosine = <D_c, D_s> / (||D_c|| ||D_s||),   written = ||U_c^T U_s||^2 / k,   read = ||V_c^T V_s||^2 / k

    with ``k`` the smaller of both numbers of directions: means of squared cosines of principal angles.

    Attributes:
        name: of the segment.
        energies: ``||D||_F^2`` of subject and style.
        inner: ``<D_c, D_s>``.
        read: share of the input directions that both look at, 0 to 1.
        written: share of the output directions that both write to, 0 to 1.
        by_chance: what both would be for directions drawn at random.
    """

    name: str
    energies: tuple[float, float]
    inner: float
    read: float
    written: float
    by_chance: tuple[float, float]


@dataclass(frozen=True)
class _Grams:
    """Of both roles' factors together, float64: the subject's rows and columns come first.

    The factors are brought to one size, whatever strengths made of them; ``scales`` is what was taken out of each role.
    """

    name: str
    ranks: tuple[int, int]
    sizes: tuple[int, int]  # of input and output
    scales: tuple[float, float]
    up: Tensor
    down: Tensor


def meetings(segments: Iterable[SegmentDeltas]) -> list[Meeting]:
    """How both roles meet in each segment, in the order given."""
    grams = [_grams(segment) for segment in segments]
    order = sorted(range(len(grams)), key=lambda i: grams[i].ranks)
    found: dict[int, Meeting] = {}
    for _, indices in groupby(order, key=lambda i: grams[i].ranks):
        alike = list(indices)
        found |= zip(alike, _of_ranks([grams[i] for i in alike]), strict=True)
    return [found[i] for i in range(len(grams))]


def _grams(segment: SegmentDeltas) -> _Grams:
    sized = [_sized(segment.up[role], segment.down[role].flatten(1)) for role in ROLES]
    up = torch.cat([up for up, _, _ in sized], dim=1)
    down = torch.cat([down for _, down, _ in sized])
    scales = sized[0][2], sized[1][2]
    ranks = segment.rank(ROLES[0]), segment.rank(ROLES[1])
    sizes = down.shape[1], up.shape[0]
    return _Grams(segment.name, ranks, sizes, scales, (up.T @ up).double(), (down @ down.T).double())


def _sized(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, float]:
    """Factors whose largest entry is 1, and what their product has to be multiplied by; 0 where it is no number."""
    tops = [float(factor.abs().amax()) if factor.numel() else 0.0 for factor in (up, down)]
    if not all(0 < top < math.inf for top in tops):
        return torch.zeros_like(up), torch.zeros_like(down), 0.0
    return up / tops[0], down / tops[1], tops[0] * tops[1]


def _of_ranks(grams: Sequence[_Grams]) -> Iterator[Meeting]:
    """All of the same ranks at once."""
    up, down = torch.stack([one.up for one in grams]), torch.stack([one.down for one in grams])
    cut = grams[0].ranks[0]
    parts = (slice(None, cut), slice(cut, None))
    squares = [(up[:, part, part] * down[:, part, part]).sum((1, 2)).clamp_min(0) for part in parts]
    inner = (up[:, parts[0], parts[1]] * down[:, parts[0], parts[1]]).sum((1, 2))
    (written, counts), (read, _) = _shared(up, down, parts), _shared(down, up, parts)
    least, most = torch.minimum(*counts).clamp_min(1), torch.maximum(*counts)
    rows = torch.stack([*squares, inner, read / least, written / least, most.double()]).T.tolist()
    for one, (subject, style, both, into, out_of, wide) in zip(grams, rows, strict=True):
        chances = (min(1.0, wide / one.sizes[0]), min(1.0, wide / one.sizes[1]))
        own, other = one.scales
        energies = (subject * own * own, style * other * other)
        yield Meeting(one.name, energies, both * own * other, into, out_of, chances)


def _shared(own: Tensor, other: Tensor, parts: Sequence[slice]) -> tuple[Tensor, list[Tensor]]:
    """``||U_c^T U_s||^2`` of the left directions of ``F_k G_k``, and how many directions each has.

    Args:
        own: Gram matrices ``[n, r, r]`` of ``F``.
        other: of ``G``.
    """
    bases, counts = [], []
    for part in parts:
        # F G G^T F^T has the eigenvectors U: with R R^T = G G^T, those of F R, from its small Gram matrix.
        root = _root(other[:, part, part])
        squares, turned = torch.linalg.eigh(root.mT @ own[:, part, part] @ root)
        loud = squares > FAINTEST**2 * squares[:, -1:].clamp_min(1e-300)
        scale = torch.where(loud, squares.clamp_min(1e-300).rsqrt(), 0.0)
        bases.append(root @ turned * scale[:, None, :])
        counts.append(loud.sum(1))
    cosines = bases[0].mT @ own[:, parts[0], parts[1]] @ bases[1]
    return cosines.square().sum((1, 2)), counts


def _root(gram: Tensor) -> Tensor:
    """``R`` with ``R R^T = gram``."""
    root, failed = torch.linalg.cholesky_ex(gram)
    if not bool(failed.any()):
        return root
    squares, directions = torch.linalg.eigh(gram)
    return directions * squares.clamp_min(0).sqrt()[:, None, :]
