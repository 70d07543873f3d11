"""What a file can keep of a run's decisions, and what it averages away.

A file has one weight a role and layer; a run may have had another in every step, picture and place. What the picture is
made of is the positive prompt's pass: its weights are kept, on average. The rest is told as a share of energy: with
``G`` the Gram matrix of the two LoRAs' deltas, weights that vary by a covariance ``C`` around their mean ``m`` lose
``<C, G>`` of ``<C + m m^T, G>``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .layers import SegmentDeltas, Weight
from .records import Plan, PlannedCall, RoutingRecord
from .roles import ROLES

STEPS, PICTURES, PLACES, NEGATIVE = "steps", "pictures", "places in the picture", "negative"


@dataclass(frozen=True)
class Kept:
    """Weights of a run's positive passes, as far as a file can have them.

    Attributes:
        layers: names of the decided segments.
        weights: ``[role, layer, step]`` float64; NaN where nothing was decided.
        varied: by what they were averaged over within a step, the mean covariance ``[layer, role, role]``.
        negative: ``[role, layer, step]``, of the negative passes; None where none was told apart.
        positive_alone: whether the weights are those of the positive passes, and not of all.
    """

    layers: tuple[str, ...]
    weights: Tensor
    varied: dict[str, Tensor] = field(default_factory=dict)
    negative: Tensor | None = None
    positive_alone: bool = False

    @property
    def one_pass(self) -> bool:
        """Whether it is known that the run had positive passes and no others, as at CFG 1."""
        return self.positive_alone and self.negative is None


def kept_of(record: RoutingRecord, plan: Plan | None) -> Kept:
    """The positive passes of a run, from its plan; all passes, where the plan does not tell them apart.

    Args:
        record: of the run.
        plan: of the same run, or None.
    """
    known = plan is not None and plan.steps == record.steps and set(plan.layers) <= set(record.layers)
    groups: dict[str, list[PlannedCall]] = {"positive": [], "negative": []}
    for call in plan.calls if plan is not None and known else ():
        groups.setdefault(call.condition.partition(".")[0], []).append(call)
    if plan is None or not groups["positive"]:
        return Kept(record.layers, record.weights)
    rows = torch.tensor([record.layers.index(name) for name in plan.layers])
    positive, places, pictures = _means(groups["positive"], rows, record.weights.shape)
    undecided = positive.isnan()  # steps of a frozen run that the plan has no calls of
    negative = _means(groups["negative"], rows, record.weights.shape)[0] if groups["negative"] else None
    return Kept(
        record.layers,
        torch.where(undecided, record.weights, positive),
        {PICTURES: pictures, PLACES: places},
        negative,
        True,
    )


def _means(calls: Sequence[PlannedCall], rows: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Means ``[role, layer, step]``, and covariances ``[layer, role, role]`` over places and over pictures."""
    roles, layers, steps = shape
    total = torch.zeros(layers, steps, roles, dtype=torch.float64)
    count = torch.zeros(layers, steps, dtype=torch.float64)
    varied = torch.zeros(2, layers, roles, roles, dtype=torch.float64)
    for call in calls:
        there = [i for i, pair in enumerate(call.weights) if pair is not None]
        at = rows[there]
        for i, values in _stacked([call.weights[i] for i in there]):
            samples = values.mean(-1)  # [layer, role, sample]
            mean = samples.mean(-1)
            place = values - samples[..., None]
            sample = samples - mean[..., None]
            total[:, call.step].index_add_(0, at[i], mean)
            count[:, call.step].index_add_(0, at[i], torch.ones(len(i), dtype=torch.float64))
            varied[0].index_add_(0, at[i], torch.einsum("lasp,lbsp->lab", place, place) / place[0, 0].numel())
            varied[1].index_add_(0, at[i], torch.einsum("las,lbs->lab", sample, sample) / sample.shape[-1])
    means = total / count[..., None]
    return (means.movedim(-1, 0), *(varied / count.sum(-1).clamp_min(1)[:, None, None]))


def _stacked(pairs: Sequence[tuple[Weight, Weight] | None]) -> list[tuple[list[int], Tensor]]:
    """Pairs of weights of one shape as ``[pair, role, sample, place]`` float64, with their indices."""
    groups: dict[tuple[int, int], list[tuple[int, Tensor]]] = {}
    for i, pair in enumerate(pairs):
        both = [torch.as_tensor(weight, dtype=torch.float64) for weight in pair or ()]
        both = [weight if weight.ndim else weight.reshape(1, 1, 1) for weight in both]
        one = torch.stack(torch.broadcast_tensors(*both)).flatten(2)
        groups.setdefault((one.shape[1], one.shape[2]), []).append((i, one))
    return [([i for i, _ in found], torch.stack([one for _, one in found])) for found in groups.values()]


class Losses:
    """Energy of the LoRAs in a run, and what of it a file averages away, added up over layers.

    Args:
        kept: of the run.
        step: index of the step that the file is of; None for all.
    """

    def __init__(self, kept: Kept, step: int | None) -> None:
        self.kept = kept
        self._rows = {name: i for i, name in enumerate(kept.layers)}
        self._chosen = slice(None) if step is None else slice(step, step + 1)
        self._energy = 0.0
        self._lost: dict[str, float] = {}
        self._by_step = torch.zeros(2, kept.weights.shape[-1], dtype=torch.float64)

    def add(self, deltas: SegmentDeltas) -> None:
        """A segment that both roles have."""
        row = self._rows.get(deltas.name)
        if row is None or set(deltas.up) != set(ROLES):
            return
        gram = _gram(deltas)
        weights = self.kept.weights[:, row]  # [role, step]
        chosen = weights[:, self._chosen].nanmean(-1, keepdim=True)
        apart = (weights - chosen).nan_to_num(0.0)
        known = (~weights.isnan().any(0)).sum().clamp_min(1)
        by_step = torch.stack([_energy(weights.nan_to_num(0.0), gram), _energy(apart, gram)])
        self._by_step += by_step
        self._energy += float(by_step[0].sum() / known)
        self._add(STEPS, float(by_step[1].sum() / known))
        for name, covariance in self.kept.varied.items():
            self._add(name, float((covariance[row] * gram).sum()))
            self._energy += float((covariance[row] * gram).sum())
        if self.kept.negative is not None:
            between = (self.kept.negative[:, row] - weights).nan_to_num(0.0)
            self._add(NEGATIVE, float(_energy(between, gram).sum() / known))

    def _add(self, name: str, value: float) -> None:
        self._lost[name] = self._lost.get(name, 0.0) + value

    @property
    def shares(self) -> dict[str, float]:
        """By what was averaged over, the share of the energy that is lost; of negative passes, how far they are."""
        return {name: value / self._energy for name, value in self._lost.items()} if self._energy else {}

    @property
    def by_step(self) -> list[float]:
        """Of every step, how far the file is from it: a share of the step's energy."""
        energy, apart = self._by_step
        return (apart / energy.clamp_min(1e-30)).tolist()


def _energy(weights: Tensor, gram: Tensor) -> Tensor:
    """``w^T G w`` of every column."""
    return torch.einsum("as,ab,bs->s", weights, gram, weights)


def _gram(deltas: SegmentDeltas) -> Tensor:
    """Inner products of the roles' deltas, without multiplying them out."""

    def inner(one: str, other: str) -> Tensor:
        up = deltas.up[one].double().T @ deltas.up[other].double()
        return (up * (deltas.down[one].flatten(1).double() @ deltas.down[other].flatten(1).double().T)).sum()

    return torch.stack([torch.stack([inner(one, other) for other in ROLES]) for one in ROLES])
