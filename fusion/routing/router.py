"""The router of one run: asks the policy, remembers what has to be remembered, keeps what was decided."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..layers.batch import Batch
from ..layers.layer import FusedLayer
from ..layers.probe import Probe
from ..layers.segment import Segment, Weight
from ..policies.base import Policy, ScheduledPolicy, ScoredPolicy, StaticPolicy, StepContext
from ..policies.passes import PassPolicy
from ..records.decisions import Decision
from ..records.replay import Replay, ReplayedCall
from ..roles import ROLES
from .attention import attention_group
from .emphasis import Emphasis, effective, negative_share
from .measuring import Measured, measure
from .refinement import Refinement
from .steadying import Steady

CAP_TOKENS = 64  # how many tokens the norm cap looks at


@dataclass(frozen=True)
class Prepared:
    """What a policy wants to know of the weights, once a model.

    Attributes:
        statistics: of a scheduled policy.
        index: of each shared segment in them.
        loudness: log of how much louder the subject's file is than the style's, the middle of all layers.
    """

    statistics: Any = None
    index: dict[str, int] = field(default_factory=dict)
    loudness: float = 0.0


def prepare(policy: Policy, refinement: Refinement, layers: Sequence[FusedLayer]) -> Prepared:
    """Look at the weights, as far as anybody asks."""
    pairs = [(layer, segment) for layer in layers for segment in layer.segments if segment.shared]
    if isinstance(policy, ScheduledPolicy) and pairs:
        index = {segment.name: i for i, (_, segment) in enumerate(pairs)}
        return Prepared(policy.prepare([layer.segment_deltas(segment) for layer, segment in pairs]), index)
    if isinstance(policy, ScoredPolicy) and refinement.even_out:
        # Deltas beside the low-rank ones may depend on a base weight that cannot be read.
        deltas = (layer.segment_deltas(segment) for layer, segment in pairs if not segment.bypasses)
        ratios = [math.log((d.energy("subject") + 1e-30) / (d.energy("style") + 1e-30)) for d in deltas]
        return Prepared(loudness=statistics.median(ratios) if ratios else 0.0)
    return Prepared()


@dataclass(eq=False)
class Router:
    """Decides the segments of one model call after another.

    Attributes:
        policy: how.
        refinement: with what settings.
        prepared: what :func:`prepare` gave for both.
        context: where in the run the calls are; the run moves it on.
        latent: size of the latent, ``(..., height, width)``.
        cfg: scale of the run's classifier-free guidance.
        fixed: once nothing is decided any more, the weights (subject, style) by segment.
        role: in a pass of the whole model with one role's LoRAs alone, that role.
        decisions: of the present call, in the order they were made.
    """

    policy: Policy
    refinement: Refinement = Refinement()
    prepared: Prepared = Prepared()
    context: StepContext = StepContext(0, 1)
    latent: tuple[int, ...] = ()
    cfg: float = 1.0
    fixed: Mapping[str, tuple[float, float]] | None = None
    role: str | None = None
    decisions: list[Decision] = field(default_factory=list)
    _batch: Batch = Batch()
    _times_called: dict[str, int] = field(default_factory=dict)
    _of_group: dict[str, Measured] = field(default_factory=dict)
    _evaluations: dict[tuple[int, str], int] = field(default_factory=dict)
    _replayed: ReplayedCall | None = None

    def __post_init__(self) -> None:
        self._steady = Steady(self.refinement)
        self._emphasis = Emphasis(negative_share(self._asked_emphasis, self.cfg))

    @property
    def _asked_emphasis(self) -> float:
        return self.refinement.emphasis or self.policy.own_emphasis

    @property
    def tells_passes_apart(self) -> bool:
        """Whether the negative prompt's pass gets other weights than the positive one's."""
        return self._emphasis.share != 1.0

    def go_to(self, step: int, sigmas: Sequence[float]) -> None:
        """The calls to come belong to that step."""
        self.context = self.context_of(step, sigmas)

    def context_of(self, step: int, sigmas: Sequence[float]) -> StepContext:
        """Where that step lies; ``sigmas`` are the run's noise levels, one more than it has steps."""
        return StepContext(step, max(1, len(sigmas) - 1), sigmas[step], effective(self._asked_emphasis, self.cfg))

    def open_call(self, batch: Batch) -> tuple[int, ...]:
        """A model call begins; ``batch`` says what it computes.

        Returns:
            For each condition, how often it has been computed in this step before.
        """
        self._batch = batch
        self._emphasis.open_call(batch)
        self._times_called, self._of_group = {}, {}
        self.decisions = []
        self._steady.memory.go_to(self.context.step)
        evaluations = tuple(self._evaluations.get((self.context.step, key), 0) for key in batch.keys)
        for key, evaluation in zip(batch.keys, evaluations, strict=True):
            self._evaluations[self.context.step, key] = evaluation + 1
        if isinstance(self.policy, Replay):
            plan = self.policy.plan
            at = zip(batch.keys, evaluations, strict=True)
            self._replayed = ReplayedCall(plan, [plan.planned(self.context, key, n) for key, n in at])
        return evaluations

    def close_call(self) -> list[Decision]:
        """The decisions of the call that ended."""
        decisions, self.decisions = self.decisions, []
        return decisions

    def decide(self, segment: Segment, probe: Probe) -> dict[str, Weight]:
        """Weights of a segment's branches (see ``FusedLayer.fuse``). Nothing is read back to the host."""
        return self._emphasis.of(self._decided(segment, probe), segment.roles, probe.base)

    def _decided(self, segment: Segment, probe: Probe) -> dict[str, Weight]:
        """The weights before emphasis: those that are recorded, planned and baked."""
        if self.role is not None:
            return {other: float(other == self.role) for other in ROLES}
        if not segment.shared:
            return {}
        if self.fixed is not None:
            return dict(zip(ROLES, self.fixed.get(segment.name, (1.0, 1.0)), strict=True))
        measured: Measured | None = None
        subject: Weight
        style: Weight
        if self._replayed is not None:
            subject, style = self._replayed.weights(segment.name, probe.base)
        elif isinstance(self.policy, StaticPolicy | PassPolicy):
            # Static merges are not decided at run time; only the plain sum can run live, to be checked against core.
            # What is computed once for passes of either role, as some models' text is, gets both.
            return {}
        elif not self.refinement.routes(self.context):
            subject, style = 1.0, 1.0
        else:
            if isinstance(self.policy, ScoredPolicy):
                measured, (subject, style) = self._scored(self.policy, segment, probe)
            else:
                subject, style = self._scheduled(segment.name, self.context)
            subject, style = self.refinement.bounded((subject, style))
            if self.refinement.cap:
                features = (probe.delta(role, CAP_TOKENS if _per_sample(subject) else 0) for role in ROLES)
                subject, style = self.refinement.capped((subject, style), *features)
        weights: dict[str, Weight] = {"subject": subject, "style": style}
        # A weight for every token of every layer and step would fill the memory: their mean is kept.
        kept: dict[str, Weight] = {r: _over_tokens(w) if isinstance(w, Tensor) else w for r, w in weights.items()}
        if measured is None:
            self.decisions.append(Decision(segment.name, {}, kept))
        else:
            scores = {role: _over_tokens(score) for role, score in measured.scores.items()}
            self.decisions.append(Decision(segment.name, scores, kept, _over_tokens(measured.log_ratio)))
        return weights

    def settled(self, name: str, log_ratio: float | None, context: StepContext) -> tuple[float, float]:
        """Weights of a segment at another step, were it to measure that log ratio there; the cap is left out.

        A segment that measured nothing is added whole.
        """
        if not self.refinement.routes(context):
            return 1.0, 1.0
        weights: tuple[Weight, Weight]
        if isinstance(self.policy, ScoredPolicy):
            if log_ratio is None:
                return 1.0, 1.0
            lean = self.refinement.preference(name, context)
            weights = self.policy.weights(torch.tensor(log_ratio), lean, context)
        else:
            weights = self._scheduled(name, context)
        subject, style = self.refinement.bounded(weights)
        return float(subject), float(style)

    def _scheduled(self, name: str, context: StepContext) -> tuple[float, float]:
        assert isinstance(self.policy, ScheduledPolicy)
        return self.policy.weights_at(self.prepared.statistics, self.prepared.index[name], context)

    def note_pass(self, role: str, layers: Sequence[FusedLayer]) -> None:
        """Keep that a pass of the whole model ran with one role's LoRAs alone."""
        weights: dict[str, Weight] = {other: float(other == role) for other in ROLES}
        self.decisions += [
            Decision(segment.name, {}, weights) for layer in layers for segment in layer.segments if segment.shared
        ]

    def _scored(self, policy: ScoredPolicy, segment: Segment, probe: Probe) -> tuple[Measured, tuple[Tensor, Tensor]]:
        called = self._times_called.get(segment.name, 0)
        self._times_called[segment.name] = called + 1
        name = f"{segment.name}#{called}" if called else segment.name
        group = attention_group(segment.name) if self.refinement.group_attention else None
        measured = self._of_group.get(f"{group}#{called}")
        if measured is None or not measured.fits(segment, probe):
            measured = measure(policy, self.refinement, segment, probe, self.latent)
            steadied = self._steady.log_ratio(name, measured.log_ratio, self._batch, self.prepared.loudness)
            measured = Measured(measured.scores, steadied)
            if group is not None:
                self._of_group[f"{group}#{called}"] = measured
        lean: Tensor | float = self.refinement.preference(segment.name, self.context)
        if policy.hard and self.refinement.hysteresis:
            lean = lean + self._steady.bonus(name, measured.log_ratio, self._batch)
        weights = policy.weights(measured.log_ratio, lean, self.context)
        if policy.hard and self.refinement.hysteresis:
            self._steady.keep_winners(name, weights[0], self._batch)
        return measured, weights


def _over_tokens(values: Tensor) -> Tensor:
    return values if values.shape[1] == 1 else values.mean(1, keepdim=True)


def _per_sample(weight: Weight) -> bool:
    """Whether all tokens of a sample share it."""
    return not isinstance(weight, Tensor) or weight.shape[1] == 1
