"""One model call: what it computes, and what is decided in it.

Core may run several calls of one run at once, each on its own device. Whatever belongs to a call is therefore here, and
found by the forwards that the call runs; what outlives it is in the run's Router.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from ..layers import Batch, FusedLayer, Joint, Probe, Segment, Weight
from ..policies import PassPolicy, ScoredPolicy, StaticPolicy, StepContext
from ..records import CallDecisions, Decision, ReplayedCall
from ..roles import ROLES
from .closed import Closed, allows
from .emphasis import Emphasis
from .given import Given
from .grid import Picture
from .measuring import Measured, measure
from .rules import Rules
from .steadying import Steady

CAP_TOKENS = 64  # how many tokens the norm cap looks at


@dataclass(eq=False)
class Call:
    """Decides the segments of one model call, one after the other.

    Attributes:
        rules: how.
        steady: what the run remembers of the steps before.
        emphasis: what the negative prompt's samples get.
        context: where in the run the call is.
        batch: what it computes.
        evaluations: of each condition, how often it had been computed in this step before.
        picture: what it tells of its tokens.
        fixed: once nothing is decided any more, the weights (subject, style) by segment.
        replayed: what a plan says of this call, if one is replayed.
        given: either of them as one tensor, where they are of one shape.
        role: in a pass of the whole model with one role's LoRAs alone, that role.
        decisions: in the order they were made; the segment's name where it was made in closed form, or given.
        mixed: whether a layer mixed the rows of the call, so that none got what is its own.
        fusing: seconds that scoring and fusing took so far, by the host's clock.
    """

    rules: Rules
    steady: Steady
    emphasis: Emphasis
    context: StepContext
    batch: Batch = Batch()
    evaluations: tuple[int, ...] = (0,)
    picture: Picture = Picture()
    fixed: Mapping[str, tuple[float, float]] | None = None
    replayed: ReplayedCall | None = None
    given: Given | None = None
    role: str | None = None
    decisions: list[Decision | str] = field(default_factory=list)
    mixed: bool = False
    fusing: float = 0.0
    _times_called: dict[str, int] = field(default_factory=dict)
    _closed: Closed = field(default_factory=Closed)
    _of_group: dict[str, Measured] = field(default_factory=dict)

    def decide(self, segment: Segment, probe: Probe) -> dict[str, Weight] | Tensor:
        """Weights of a segment's branches (see ``FusedLayer.fuse``). Nothing is read back to the host."""
        self.mixed |= probe.mixed and self.batch.rows > 1
        if self.given is not None and segment.shared:
            pair = self.given.pair(segment.name, probe.base, self.emphasis)
            if pair is not None:
                if self.fixed is None:
                    self.given.note(segment.name, len(self.decisions))
                    self.decisions.append(segment.name)
                return pair
        pair = self._in_closed_form(segment, probe)
        if pair is not None:
            return self.emphasis.of_pair(pair)
        weights = self._decided(segment, probe)
        pair = self.emphasis.pair_of(weights, probe.base) if segment.shared else None
        return self.emphasis.of(weights, segment.roles, probe.base) if pair is None else pair

    def decide_together(self, joint: Joint) -> Tensor | None:
        """Both weights of neighbouring segments ``[segments, batch or 1, 2]``; None where each is decided alone."""
        names = [segment.name for segment in joint.segments]
        row = len(self.decisions)
        pairs = self.given.pairs(joint, self.emphasis) if self.given is not None else None
        if pairs is not None and self.given is not None:
            if self.fixed is None:
                for i, name in enumerate(names):
                    self.given.note(name, row + i)
                self.decisions += names
        elif self._may_be_closed:
            policy = self.rules.policy
            assert isinstance(policy, ScoredPolicy)
            # They are of one block, and nothing but that tells preferences apart.
            lean = self.rules.preference(names[0], self.context)
            pairs = self._closed.decide_together(policy, lean, self.context, joint, row)
            if pairs is not None:
                self.decisions += names
                pairs = self.emphasis.of_pairs(pairs, joint.base)
        if pairs is not None:
            self.mixed |= joint.mixed and self.batch.rows > 1
        return pairs

    def decided(self) -> CallDecisions:
        """All that was decided, put together: for when the call is over."""
        more = [self._closed.block()] if self._closed.rows else []
        more += self.given.blocks() if self.given is not None else []
        return CallDecisions.of(self.context.step, self.batch, self.evaluations, self.decisions, *more)

    def note_pass(self, role: str, layers: Sequence[FusedLayer]) -> None:
        """Keep that a pass of the whole model ran with one role's LoRAs alone."""
        weights: dict[str, Weight] = {other: float(other == role) for other in ROLES}
        self.decisions += [
            Decision(segment.name, {}, weights) for layer in layers for segment in layer.segments if segment.shared
        ]

    def _in_closed_form(self, segment: Segment, probe: Probe) -> Tensor | None:
        """Both weights ``[batch, 2]`` before emphasis, where they can be had so."""
        if not (self._may_be_closed and segment.shared):
            return None
        policy = self.rules.policy
        assert isinstance(policy, ScoredPolicy)
        lean = self.rules.preference(segment.name, self.context)
        pair = self._closed.decide(policy, lean, self.context, probe, len(self.decisions))
        if pair is not None:
            self.decisions.append(segment.name)
        return pair

    @cached_property
    def _may_be_closed(self) -> bool:
        policy, refinement = self.rules.policy, self.rules.refinement
        given = self.role is not None or self.fixed is not None or self.replayed is not None
        return (
            not given
            and isinstance(policy, ScoredPolicy)
            and refinement.routes(self.context)
            and allows(policy, refinement)
        )

    def _decided(self, segment: Segment, probe: Probe) -> dict[str, Weight]:
        """The weights before emphasis: those that are recorded, planned and baked."""
        if self.role is not None:
            return {other: float(other == self.role) for other in ROLES}
        if not segment.shared:
            return {}
        if self.fixed is not None:
            return dict(zip(ROLES, self.fixed.get(segment.name, (1.0, 1.0)), strict=True))
        policy, refinement = self.rules.policy, self.rules.refinement
        measured: Measured | None = None
        subject: Weight
        style: Weight
        if self.replayed is not None:
            planned = self.replayed.weights(segment.name, probe.base, self.batch)
            subject, style = (_own_heads(segment, weight) for weight in planned)
        elif isinstance(policy, StaticPolicy | PassPolicy):
            # Static merges are not decided at run time; only the plain sum can run live, to be checked against core.
            # What is computed once for passes of either role, as some models' text is, gets both.
            return {}
        elif not refinement.routes(self.context):
            subject, style = 1.0, 1.0
        else:
            if isinstance(policy, ScoredPolicy):
                measured, (subject, style) = self._scored(policy, segment, probe)
            else:
                subject, style = self.rules.scheduled(segment.name, self.context)
            subject, style = refinement.bounded((subject, style))
            if refinement.cap:
                features = (probe.delta(role, CAP_TOKENS if _per_sample(subject) else 0) for role in ROLES)
                subject, style = refinement.capped((subject, style), *features)
        weights: dict[str, Weight] = {"subject": subject, "style": style}
        # A weight for every token of every layer and step would fill the memory: their mean is kept.
        kept: dict[str, Weight] = {r: _over_tokens(w) if isinstance(w, Tensor) else w for r, w in weights.items()}
        if measured is None:
            self.decisions.append(Decision(segment.name, {}, kept))
        else:
            scores = {role: _over_tokens(score) for role, score in measured.scores.items()}
            self.decisions.append(Decision(segment.name, scores, kept, _over_tokens(measured.log_ratio)))
        return weights

    def _scored(self, policy: ScoredPolicy, segment: Segment, probe: Probe) -> tuple[Measured, tuple[Tensor, Tensor]]:
        refinement = self.rules.refinement
        called = self._times_called.get(segment.name, 0)
        self._times_called[segment.name] = called + 1
        name = f"{segment.name}#{called}" if called else segment.name
        group = segment.group if refinement.group_attention else None
        measured = self._of_group.get(f"{group}#{called}")
        if measured is None or not measured.fits(segment, probe):
            measured = measure(policy, refinement, segment, probe, self.picture)
            steadied = self.steady.log_ratio(
                name, measured.log_ratio, self.batch, self.rules.prepared.loudness, segment.pairing
            )
            measured = Measured(measured.scores, steadied)
            if group is not None:
                self._of_group[f"{group}#{called}"] = measured
        lean: Tensor | float = self.rules.preference(segment.name, self.context)
        if policy.hard and refinement.hysteresis:
            lean = lean + self.steady.bonus(name, measured.log_ratio, self.batch)
        weights = policy.weights(measured.log_ratio, lean, self.context, segment.pairing)
        if policy.hard and refinement.hysteresis:
            self.steady.keep_winners(name, weights[0], self.batch)
        return measured, weights


def _over_tokens(values: Tensor) -> Tensor:
    return values if values.shape[1] == 1 else values.mean(1, keepdim=True)


def _own_heads(segment: Segment, weight: Weight) -> Weight:
    """A segment's own heads, of a weight for those of its whole layer; the mean of all where it has none."""
    if not isinstance(weight, Tensor) or weight.shape[-1] == 1 or "[" not in segment.name:
        return weight
    width = segment.head_width
    if width is None:
        return weight.mean(-1, keepdim=True)
    own = slice(segment.start // width, segment.stop // width)
    return weight if weight.shape[-1] == own.stop - own.start else weight[..., own]


def _per_sample(weight: Weight) -> bool:
    """Whether all tokens of a sample share it."""
    return not isinstance(weight, Tensor) or weight.shape[1] == 1
