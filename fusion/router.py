"""The router of one run: asks the policy, remembers what has to be remembered, keeps what was decided."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .attention import attention_group
from .grid import blurred, grid_of
from .layers import FusedLayer, Probe
from .memory import Batch, Memory, together
from .plan import Replay, ReplayedCall
from .policies.base import Policy, ScheduledPolicy, ScoredPolicy, StaticPolicy, StepContext
from .policies.passes import PassPolicy
from .refinement import OWN, Refinement
from .scores import SCORES
from .segment import Segment, Weight
from .segments import ROLES

CAP_TOKENS = 64  # how many tokens the norm cap looks at


@dataclass
class Decision:
    """What was decided in one call of one segment; tensors ``[batch, 1, heads]`` stay on the device.

    Attributes:
        layer: the segment's name.
        scores: of both roles; empty where nothing was measured.
        log_ratio: what the policy was given of them, steadied.
        weights: of both roles.
    """

    layer: str
    scores: dict[str, Tensor]
    weights: dict[str, Weight]
    log_ratio: Tensor | None = None


@dataclass(frozen=True)
class _Measured:
    """Scores of both roles, and their steadied log ratio."""

    scores: dict[str, Tensor]
    log_ratio: Tensor


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
        role: in a pass of the whole model with one role's LoRAs alone, that role.
        decisions: of the present call, in the order they were made.
    """

    policy: Policy
    refinement: Refinement = Refinement()
    prepared: Prepared = Prepared()
    context: StepContext = StepContext(0, 1)
    latent: tuple[int, ...] = ()
    role: str | None = None
    decisions: list[Decision] = field(default_factory=list)
    _batch: Batch = Batch()
    _memory: Memory = field(default_factory=Memory)
    _times_called: dict[str, int] = field(default_factory=dict)
    _of_group: dict[str, _Measured] = field(default_factory=dict)
    _evaluations: dict[tuple[int, str], int] = field(default_factory=dict)
    _replayed: ReplayedCall | None = None

    def open_call(self, batch: Batch) -> tuple[int, ...]:
        """A model call begins; ``batch`` says what it computes.

        Returns:
            For each condition, how often it has been computed in this step before.
        """
        self._batch = batch
        self._times_called, self._of_group = {}, {}
        self.decisions = []
        self._memory.go_to(self.context.step)
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
        if self.role is not None:
            return {other: float(other == self.role) for other in ROLES}
        if not segment.shared:
            return {}
        measured: _Measured | None = None
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
                stride = max(1, probe.base.shape[1] // CAP_TOKENS) if _per_sample(subject) else 1
                features = (probe.delta(role, stride) for role in ROLES)
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
        """Weights of a segment at another step, were it to measure that log ratio there; the cap is left out."""
        if not self.refinement.routes(context):
            return 1.0, 1.0
        weights: tuple[Weight, Weight]
        if isinstance(self.policy, ScoredPolicy):
            assert log_ratio is not None
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

    def _scored(self, policy: ScoredPolicy, segment: Segment, probe: Probe) -> tuple[_Measured, tuple[Tensor, Tensor]]:
        called = self._times_called.get(segment.name, 0)
        self._times_called[segment.name] = called + 1
        name = f"{segment.name}#{called}" if called else segment.name
        group = attention_group(segment.name) if self.refinement.group_attention else None
        measured = self._of_group.get(f"{group}#{called}")
        if measured is None or not _fits(measured.log_ratio, segment, probe):
            scores = self._scores(policy, segment, probe)
            # Scores are squares: the bound keeps an all-zero delta finite without touching any real one.
            log_ratio = (scores["subject"].clamp_min(1e-30) / scores["style"].clamp_min(1e-30)).log()
            measured = _Measured(scores, self._steadied(name, log_ratio))
            if group is not None:
                self._of_group[f"{group}#{called}"] = measured
        lean: Tensor | float = self.refinement.preference(segment.name, self.context)
        if policy.hard and self.refinement.hysteresis:
            lean = lean + self._stickiness(name, measured.log_ratio)
        weights = policy.weights(measured.log_ratio, lean, self.context)
        if policy.hard and self.refinement.hysteresis:
            for key, part in zip(self._batch.keys, self._batch.parts(weights[0]) or (), strict=False):
                self._memory.keep(f"{name}:won", key, part)
        return measured, weights

    def _scores(self, policy: ScoredPolicy, segment: Segment, probe: Probe) -> dict[str, Tensor]:
        """Scores of both roles, ``[batch, 1, 1]``, ``[batch, 1, heads]`` or ``[batch, tokens, 1]``."""
        chosen = policy.score if self.refinement.score == OWN else self.refinement.score
        score, granularity = SCORES[chosen], self.refinement.granularity
        tokens = probe.base.shape[1]
        stride = max(1, tokens // policy.max_tokens) if policy.max_tokens else 1
        if granularity == "token" and tokens > 1:
            base = probe.base[:, :, None]
            grid = grid_of(tokens, probe.space or self.latent)
            each = {role: score(base, probe.delta(role)[:, :, None]) for role in ROLES}
            return {role: blurred(values, self.refinement.blur, grid)[..., None] for role, values in each.items()}
        base = probe.base[:, ::stride]
        if granularity == "head" and segment.head_width:
            heads = (-1, segment.head_width)
            base = base.unflatten(-1, heads).transpose(1, 2)
            deltas = {role: probe.delta(role, stride).unflatten(-1, heads).transpose(1, 2) for role in ROLES}
            return {role: score(base, delta)[:, None] for role, delta in deltas.items()}
        if chosen == "energy":
            loudness = base.float().square().sum((-2, -1)).clamp_min(1e-12)
            return {role: (e / loudness)[:, None, None] for role, e in probe.energies(stride).items()}
        return {role: score(base, probe.delta(role, stride))[:, None, None] for role in ROLES}

    def _steadied(self, name: str, log_ratio: Tensor) -> Tensor:
        """The log ratio evened out over layers, smoothed over steps, and taken from the followed condition."""
        settings, memory = self.refinement, self._memory
        if not (settings.even_out or settings.smoothing or settings.follow_cond):
            return log_ratio
        parts = self._batch.parts(log_ratio)
        if parts is None:
            return log_ratio
        steadied = []
        for key, part in zip(self._batch.keys, parts, strict=True):
            if settings.even_out:
                memory.add_to_mean(key, part)
                mean = memory.mean(key)
                if mean is None or mean.shape != part.shape[:1]:
                    part = part - settings.even_out * self.prepared.loudness
                else:
                    part = part - settings.even_out * mean[:, None, None]
            if settings.smoothing:
                before = memory.before(name, key, part)
                if before is not None:
                    part = settings.smoothing * before + (1 - settings.smoothing) * part
            memory.keep(name, key, part)
            if settings.follow_cond and key != self._batch.followed:
                before = memory.before(name, self._batch.followed, part)
                part = part if before is None else before
            steadied.append(part)
        return together(steadied)

    def _stickiness(self, name: str, log_ratio: Tensor) -> Tensor | float:
        """A bonus for whoever won the step before."""
        parts = self._batch.parts(log_ratio)
        if parts is None:
            return 0.0
        before = [
            self._memory.before(f"{name}:won", key, part) for key, part in zip(self._batch.keys, parts, strict=True)
        ]
        bonus = self.refinement.hysteresis
        return together(
            [
                part.new_zeros(part.shape) if won is None else bonus * (2 * won - 1)
                for won, part in zip(before, parts, strict=True)
            ]
        )


def _over_tokens(values: Tensor) -> Tensor:
    return values if values.shape[1] == 1 else values.mean(1, keepdim=True)


def _per_sample(weight: Weight) -> bool:
    """Whether all tokens of a sample share it."""
    return not isinstance(weight, Tensor) or weight.shape[1] == 1


def _fits(log_ratio: Tensor, segment: Segment, probe: Probe) -> bool:
    """Whether a decision made for another layer can be taken over by this one."""
    batch, tokens, heads = log_ratio.shape
    own_heads = (segment.stop - segment.start) // segment.head_width if segment.head_width else 1
    return batch == probe.base.shape[0] and tokens in (1, probe.base.shape[1]) and heads in (1, own_heads)
