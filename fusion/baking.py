"""Fused deltas as one low-rank update: the mathematics of writing a fusion down as an ordinary LoRA.

Thin factors are never multiplied out: two QRs leave a core as small as the rank, and its SVD is that of the product.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .averaging import Kept
from .layers import SegmentDeltas
from .policies import PassPolicy, Policy, StepContext
from .records import RoutingRecord
from .roles import ROLES

Factors = tuple[Tensor, Tensor]
# Up to this side a dense delta gets a full SVD: to find its rank, or to cut it where the leading directions alone,
# found from a random subspace, are not much cheaper.
FULL_SVD_SIDE = 1024
CUT_SVD_SIDE = 256


@dataclass(frozen=True)
class BakedWeights:
    """Weights of a run at one step, or their means over its decided steps.

    Attributes:
        shared: by segment name the weights of both roles; segments that were never decided are missing.
        alone: the weight of each role in segments that it has to itself.
    """

    shared: Mapping[str, Mapping[str, float]]
    alone: Mapping[str, float]


def baked_weights(policy: Policy, record: RoutingRecord, step: int | None, kept: Kept | None = None) -> BakedWeights:
    """Weights from a run's record.

    Policies that run the model in passes turn off the resting LoRA's own layers too, which the record does not list:
    they get the share of passes that their LoRA is on in.

    Args:
        policy: the run's.
        record: what it decided.
        step: index from 0, or None for the mean over the steps.
        kept: what a file can keep of them; all passes on average if None.

    Raises:
        ValueError: the run has no such step, or decided nothing in it.
    """
    if step is not None and not 0 <= step < record.steps:
        raise ValueError(f"the run has {record.steps} steps, not {step + 1}")
    chosen = slice(None) if step is None else slice(step, step + 1)
    weights = (record.weights if kept is None else kept.weights)[..., chosen]
    decided = [i for i in range(len(record.layers)) if not bool(weights[0, i].isnan().all())]
    if record.layers and not decided:
        raise ValueError(f"nothing was decided in step {record.steps if step is None else step + 1}")
    means = weights.nanmean(-1)
    shared = {record.layers[i]: {role: float(means[r, i]) for r, role in enumerate(ROLES)} for i in decided}
    alone = dict.fromkeys(ROLES, 1.0)
    if isinstance(policy, PassPolicy):
        contexts = [StepContext(i, record.steps) for i in range(record.steps)][chosen]
        passes = [policy.passes(context) for context in contexts]
        alone = {role: sum(p.count(role) / len(p) for p in passes) / len(passes) for role in ROLES}
    return BakedWeights(shared, alone)


@dataclass(frozen=True)
class LowRank:
    """The best approximation of a delta at its rank.

    Attributes:
        up: ``[out, rank]``.
        down: ``[rank, in, *kernel]``.
        energy: ``||dW||_F^2`` of the delta.
        lost: ``||dW - up down||_F^2``.
        energies: of the leading directions, the largest first; more than ``rank`` where they are known.
    """

    up: Tensor
    down: Tensor
    energy: float
    lost: float
    energies: Tensor = field(default_factory=lambda: torch.zeros(0))

    @property
    def rank(self) -> int:
        return self.up.shape[1]


def weighted(deltas: SegmentDeltas, weights: Mapping[str, float]) -> Factors:
    """Factors of ``sum_role w_role dW_role``; roles of weight 0 leave no rank behind."""
    roles = [role for role in deltas.up if weights[role] != 0]
    if not roles:
        role = next(iter(deltas.up))
        return deltas.up[role][:, :0], deltas.down[role][:0]
    up = torch.cat([weights[role] * deltas.up[role] for role in roles], dim=1)
    return up, torch.cat([deltas.down[role] for role in roles])


def assembled(parts: Sequence[tuple[int, Factors | Tensor]], shape: tuple[int, ...]) -> Factors | Tensor:
    """A weight's delta from the deltas of runs of its output channels.

    Args:
        parts: per run its first channel, and either factors ``(up, down)`` or the dense delta.
        shape: of the weight, ``[out, in, *kernel]``.

    Returns:
        Factors whose rank is the sum of the parts' ranks; dense where that is no less than the weight's own sides.
    """
    out, width = shape[0], math.prod(shape[1:])
    factors = [(start, part) for start, part in parts if isinstance(part, tuple)]
    if len(factors) == len(parts) and sum(down.shape[0] for _, (_, down) in factors) < min(out, width):
        ups = []
        for start, (up, _) in factors:
            whole = up.new_zeros(out, up.shape[1])
            whole[start : start + up.shape[0]] = up
            ups.append(whole)
        return torch.cat(ups, dim=1), torch.cat([down for _, (_, down) in factors]).reshape(-1, *shape[1:])
    first = parts[0][1]
    dense = (first[0] if isinstance(first, tuple) else first).new_zeros(out, width)
    for start, part in parts:
        rows = part[0] @ part[1].flatten(1) if isinstance(part, tuple) else part.flatten(1)
        dense[start : start + rows.shape[0]] += rows
    return dense.reshape(shape)


def low_rank(delta: Factors | Tensor, rank: int = 0, energy: float = 1.0) -> LowRank:
    """The best approximation of a delta of at most that rank (Eckart-Young); 0 keeps all of it.

    What is smaller than the delta's own rounding (see :func:`rounding`) is no part of its rank.

    Args:
        delta: factors ``(up [out, r], down [r, in, *kernel])``, computed with in float64, or dense
            ``[out, in, *kernel]``, computed with as it is.
        rank: the most to keep.
        energy: the share of a delta's energy ``||dW||_F^2`` that is enough of a dense one, which has full rank.
    """
    if rank < 0:
        raise ValueError(f"rank must not be negative, got {rank}")
    if isinstance(delta, Tensor):
        return _of_dense(delta, rank, energy)
    up, down = delta
    if down.shape[0] < min(up.shape[0], math.prod(down.shape[1:])):
        energy = 1.0  # thin as it is
    q_up, r_up = torch.linalg.qr(up.double())
    q_down, r_down = torch.linalg.qr(down.double().flatten(1).T)
    u, s, vh = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    noise = rounding((q_up.shape[0], q_down.shape[0]), torch.promote_types(up.dtype, down.dtype), s.dtype)
    return _cut(q_up @ u, s, vh @ q_down.T, down.shape[1:], rank, noise, enough=energy)


def rounding(shape: Sequence[int], given: torch.dtype, computed: torch.dtype) -> float:
    """Singular values up to this share of the largest may be rounding noise.

    The expected error of a matrix ``[m, n]`` whose entries are rounded, or of an SVD that rounds as it goes, is ``eps /
    2 sqrt(m + n + 1)`` of its norm (Press et al., Numerical Recipes, 3rd edition, p. 795); both happen here, each in
    its own precision. The ``max(m, n) eps`` of ``numpy.linalg.matrix_rank`` is for the worst case: in a large layer a
    hundred times more, and a weak LoRA's directions are among those.

    Args:
        shape: of the matrix.
        given: what the matrix or its factors were rounded to.
        computed: what the SVD was computed in.
    """
    return (torch.finfo(given).eps + torch.finfo(computed).eps) / 2 * math.sqrt(sum(shape) + 1)


def _of_dense(dense: Tensor, rank: int, enough: float) -> LowRank:
    rows = dense.flatten(1)
    side = min(rows.shape)
    noise = rounding(rows.shape, rows.dtype, rows.dtype)
    rank = rank if rank < side else 0
    if enough < 1 or side <= (CUT_SVD_SIDE if rank else FULL_SVD_SIDE):
        u, s, vh = torch.linalg.svd(rows, full_matrices=False)
        return _cut(u, s, vh, dense.shape[1:], rank, noise, enough=enough)
    energy = float(rows.square().sum(dtype=torch.float64))
    if rank == 0:
        # As it is, with the identity on the shorter side: nothing is lost, nor saved.
        eye = torch.eye(side, dtype=rows.dtype, device=rows.device)
        up, down = (eye, rows) if rows.shape[0] == side else (rows, eye)
        return LowRank(up, down.reshape(side, *dense.shape[1:]), energy, 0.0)
    u, s, vh = _leading(rows, min(side, rank + 16))
    found = float(s.square().sum(dtype=torch.float64))
    return _cut(u, s, vh, dense.shape[1:], rank, noise, beyond=max(0.0, energy - found))


def _leading(rows: Tensor, count: int, rounds: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """An SVD within the subspace of the leading right directions (Halko et al. 2011, subspace iteration).

    As ``torch.svd_lowrank``, but with a draw of its own: the same file on every run, and no other draw disturbed.
    """
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(rows.shape[1], count, generator=generator).to(rows)
    for _ in range(rounds + 1):
        basis = torch.linalg.qr(rows.T @ torch.linalg.qr(rows @ basis).Q).Q
    u, s, vh = torch.linalg.svd(rows @ basis, full_matrices=False)
    return u, s, vh @ basis.T


def _cut(
    u: Tensor,
    s: Tensor,
    vh: Tensor,
    inner: torch.Size,
    rank: int,
    noise: float,
    beyond: float = 0.0,
    enough: float = 1.0,
) -> LowRank:
    """Keep the leading directions of an SVD that leaves the energy ``beyond`` out, but no noise.

    Both sides share the singular values, so that neither leaves the range of float16.
    """
    keep = int((s > s[:1] * noise).sum())
    if rank:
        keep = min(keep, rank)
    energies = s.square().double()
    if enough < 1:
        missing = energies.sum() - energies.cumsum(0)
        keep = min(keep, 1 + int((missing > (1 - enough) * energies.sum()).sum()))
    root = s[:keep].sqrt()
    return LowRank(
        u[:, :keep] * root,
        (root[:, None] * vh[:keep]).reshape(keep, *inner),
        float(energies.sum()) + beyond,
        float(energies[keep:].sum()) + beyond,
        energies,
    )
