"""Merges made once, before sampling: sum, average, NP-LoRA, SVD, TIES, DARE, DELLA, magnitude pruning."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..layers.segment import SegmentDeltas
from ..roles import ROLES
from .base import StaticPolicy

Factors = tuple[Tensor, Tensor]


def concatenated(segment: SegmentDeltas, subject: float = 1.0, style: float = 1.0) -> Factors:
    """Exact factors of the weighted sum: ``[w_c B_c | w_s B_s]`` and ``[A_c; A_s]`` (PEFT's ``cat``)."""
    up = torch.cat([subject * segment.up["subject"], style * segment.up["style"]], dim=1)
    return up, torch.cat([segment.down[role] for role in ROLES])


@dataclass(frozen=True)
class FactorPolicy(StaticPolicy):
    """Static policies whose merge is low-rank."""

    @property
    def exact_factors(self) -> bool:
        return True


@dataclass(frozen=True)
class Sum(FactorPolicy):
    """Both LoRAs at their strengths: what stacking two LoRA loaders does."""

    name: ClassVar[str] = "sum"

    @property
    def is_sum(self) -> bool:
        return True

    def merge(self, segment: SegmentDeltas) -> Factors:
        return concatenated(segment)


@dataclass(frozen=True)
class Average(FactorPolicy):
    """Half of each where both touch a layer; a layer of one LoRA keeps it whole."""

    name: ClassVar[str] = "average"

    def merge(self, segment: SegmentDeltas) -> Factors:
        return concatenated(segment, 0.5, 0.5)


@dataclass(frozen=True)
class NPLoRA(FactorPolicy):
    """NP-LoRA (arXiv 2511.11051): the subject is projected off the style's input subspace, softly.

    ``dW = dW_s + dW_c (I - mu/(1+mu) V V^T)`` with ``V`` the right singular vectors of ``dW_s`` that have a singular
    value. In factors: ``A_c' = A_c - mu/(1+mu) (A_c V) V^T``. mu 0 is the sum, a large mu the hard null-space
    projection. A convolution's input space is that of its unfolded patches.
    """

    name: ClassVar[str] = "np_lora"

    mu: float = 0.5

    def __post_init__(self) -> None:
        if not self.mu >= 0:
            raise ValueError(f"mu must not be negative, got {self.mu}")

    def merge(self, segment: SegmentDeltas) -> Factors:
        down_c, down_s = segment.down["subject"].flatten(1), segment.down["style"].flatten(1)
        # A thin QR of A_s, as the paper suggests, would invent directions where A_s or B_s lacks rank: the singular
        # vectors of the product, through the small triangle of B_s, do not.
        triangle = torch.linalg.qr(segment.up["style"].double(), mode="r").R
        _, singular, right = torch.linalg.svd(triangle @ down_s.double(), full_matrices=False)
        basis = right[singular > singular[0] * 1e-7].T.to(down_c)
        projected = down_c - self.mu / (1 + self.mu) * (down_c @ basis) @ basis.T
        up = torch.cat([segment.up["subject"], segment.up["style"]], dim=1)
        return up, torch.cat([projected, down_s]).reshape(-1, *segment.down["style"].shape[1:])


@dataclass(frozen=True)
class SVD(FactorPolicy):
    """The sum, cut to its ``rank`` largest singular directions (0: the larger rank of the two)."""

    name: ClassVar[str] = "svd"

    rank: int = 0

    def merge(self, segment: SegmentDeltas) -> Factors:
        up, down = concatenated(segment)
        rank = self.rank or max(segment.rank(role) for role in ROLES)
        # SVD of a product of thin factors: two QRs and a small core.
        q_up, r_up = torch.linalg.qr(up.double())
        q_down, r_down = torch.linalg.qr(down.double().flatten(1).T)
        u, s, vh = torch.linalg.svd(r_up @ r_down.T)
        cut_up = (q_up @ u[:, :rank]) * s[:rank]
        cut_down = vh[:rank] @ q_down.T
        return cut_up.to(up), cut_down.to(down).reshape(-1, *down.shape[1:])


def top_fraction(delta: Tensor, density: float) -> Tensor:
    """Zero all but the ``density`` largest entries by magnitude (of the whole matrix, as in TIES)."""
    keep = max(1, round(density * delta.numel()))
    if keep >= delta.numel():
        return delta
    threshold = delta.abs().flatten().kthvalue(delta.numel() - keep + 1).values
    return torch.where(delta.abs() >= threshold, delta, torch.zeros_like(delta))


def elect_and_mean(deltas: list[Tensor]) -> Tensor:
    """TIES' last two steps: elect each entry's sign by the summed mass (zero counts as +), average those that agree."""
    stacked = torch.stack(deltas)
    sign = torch.where(stacked.sum(0) >= 0, 1.0, -1.0).to(stacked)
    agree = (stacked * sign > 0).to(stacked)
    return (stacked * agree).sum(0) / agree.sum(0).clamp_min(1)


@dataclass(frozen=True)
class MagnitudePrune(StaticPolicy):
    """Each delta keeps its largest entries, as in PEFT's ``magnitude_prune_svd`` but undiminished; then the sum.

    On the dense deltas: PEFT's variant without ``svd`` prunes the factors, which prunes other entries.

    Attributes:
        density: share of entries kept.
    """

    name: ClassVar[str] = "magnitude_prune"

    density: float = 0.5

    def __post_init__(self) -> None:
        _check_density(self.density)

    def merge(self, segment: SegmentDeltas) -> Tensor:
        return sum(top_fraction(segment.dense(role), self.density) for role in ROLES)  # type: ignore[return-value]


@dataclass(frozen=True)
class TIES(StaticPolicy):
    """TIES-Merging (arXiv 2306.01708): trim, elect signs, average what agrees.

    On the dense deltas, as the paper does with its task vectors (PEFT's ``ties`` works on the factors). The sign is
    elected after the strengths are applied, as in mergekit; an even vote counts as +, as in PEFT.

    Attributes:
        density: share of entries kept (the paper's 0.2 is for many full models).
        scale: of the merged delta; with two LoRAs the average of one agreeing entry is that entry.
    """

    name: ClassVar[str] = "ties"

    density: float = 0.5
    scale: float = 1.0

    def __post_init__(self) -> None:
        _check_density(self.density)

    def merge(self, segment: SegmentDeltas) -> Tensor:
        return self.scale * elect_and_mean([top_fraction(segment.dense(role), self.density) for role in ROLES])


@dataclass(frozen=True)
class DARE(StaticPolicy):
    """DARE (arXiv 2311.03099): entries are dropped by chance and the rest rescaled by ``1 / density``; then the sum.

    The expectation of the merge is the plain sum.

    Attributes:
        density: share of entries kept, on average.
        seed: of the draw; every layer and role draws apart.
    """

    name: ClassVar[str] = "dare"

    density: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        _check_density(self.density)

    def merge(self, segment: SegmentDeltas) -> Tensor:
        total = None
        for role in ROLES:
            dense = segment.dense(role)
            kept = dense * (uniform(segment.name, role, self.seed, dense) < self.density) / self.density
            total = kept if total is None else total + kept
        assert total is not None
        return total


@dataclass(frozen=True)
class DELLA(StaticPolicy):
    """DELLA (arXiv 2406.11617): like DARE, but larger entries of a row are kept likelier; then TIES' election.

    An entry of rank i (0 smallest) among the n of its row is kept with probability
    ``density - epsilon + 2 epsilon i / (n - 1)`` and divided by it. Follows mergekit's spread of +- epsilon (the
    paper's is +- epsilon / 2) and the paper's rescaling of each entry by its own probability.

    Attributes:
        density: mean share of entries kept.
        epsilon: how much the largest entry of a row is favoured, the smallest disfavoured.
        seed: of the draw.
    """

    name: ClassVar[str] = "della"

    density: float = 0.5
    epsilon: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        _check_density(self.density)
        if not 0 <= self.epsilon < min(self.density, 1 - self.density + 1e-12):
            raise ValueError(f"epsilon must keep density +- epsilon within (0, 1], got {self.epsilon}")

    def merge(self, segment: SegmentDeltas) -> Tensor:
        kept = []
        for role in ROLES:
            dense = segment.dense(role)
            rows = dense.flatten(1)
            order = rows.abs().argsort(1).argsort(1).to(rows)
            p = self.density - self.epsilon + 2 * self.epsilon * order / max(1, rows.shape[1] - 1)
            chosen = uniform(segment.name, role, self.seed, rows) < p
            kept.append((rows * chosen / p).reshape(dense.shape))
        return elect_and_mean(kept)


def uniform(name: str, role: str, seed: int, like: Tensor) -> Tensor:
    """Uniform numbers that depend on the layer, the role and the seed alone, not on the order of layers."""
    digest = hashlib.sha256(f"{seed}:{role}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.rand(like.shape, generator=generator).to(like.device)


def _check_density(density: float) -> None:
    if not 0 < density <= 1:
        raise ValueError(f"density must lie in (0, 1], got {density}")
