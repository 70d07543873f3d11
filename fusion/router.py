"""The router of one run: asks the policy, remembers what has to be remembered, keeps what was decided."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .layers import FusedLayer, Segment, Weight
from .policies.base import Policy, ScheduledPolicy, ScoredPolicy, StaticPolicy, StepContext
from .policies.passes import PassPolicy
from .segments import ROLES


@dataclass
class Decision:
    """What was decided in one call of one segment; ``[batch]`` tensors stay on the device."""

    layer: str
    scores: dict[str, Tensor]
    weights: dict[str, Weight]


def prepare(policy: Policy, layers: Sequence[FusedLayer]) -> tuple[Any, dict[str, int]]:
    """What a policy wants to know of the weights, once a model, and each shared segment's index in it."""
    if not isinstance(policy, ScheduledPolicy):
        return None, {}
    pairs = [(layer, segment) for layer in layers for segment in layer.segments if segment.shared]
    index = {segment.name: i for i, (_, segment) in enumerate(pairs)}
    return policy.prepare([layer.segment_deltas(segment) for layer, segment in pairs]) if pairs else None, index


@dataclass(eq=False)
class Router:
    """Decides the segments of one model call after another.

    Attributes:
        policy: how.
        prepared: what :func:`prepare` gave for the policy.
        index: likewise.
        context: where in the run the calls are; the run moves it on.
        decisions: of the present call, in the order they were made.
    """

    policy: Policy
    prepared: Any = None
    index: dict[str, int] = field(default_factory=dict)
    context: StepContext = StepContext(0, 1)
    decisions: list[Decision] = field(default_factory=list)

    def decide(self, segment: Segment, base: Tensor, delta: Callable[[str, int], Tensor]) -> dict[str, Weight]:
        """Weights of a shared segment's branches (see ``FusedLayer.fuse``). Nothing is read back to the host."""
        policy = self.policy
        scores: dict[str, Tensor] = {}
        if isinstance(policy, ScoredPolicy):
            stride = max(1, base.shape[1] // policy.max_tokens) if policy.max_tokens else 1
            sample = base[:, ::stride]
            scores = {role: policy.score(sample, delta(role, stride)) for role in ROLES}
            subject, style = policy.weights(scores["subject"], scores["style"], self.context)
        elif isinstance(policy, ScheduledPolicy):
            subject, style = policy.weights_at(self.prepared, self.index[segment.name], self.context)  # type: ignore[assignment]
        else:
            # Static merges are not decided at run time; only the plain sum can be run live, to be checked against core.
            # What is computed once for passes of either role, as some models' text is, gets both.
            assert isinstance(policy, PassPolicy) or (isinstance(policy, StaticPolicy) and policy.is_sum)
            return {}
        weights: dict[str, Weight] = {"subject": subject, "style": style}
        self.decisions.append(Decision(segment.name, scores, weights))
        return weights

    def note_pass(self, role: str, layers: Sequence[FusedLayer]) -> None:
        """Keep that a pass of the whole model ran with one role's LoRAs alone."""
        weights: dict[str, Weight] = {other: float(other == role) for other in ROLES}
        self.decisions += [
            Decision(segment.name, {}, weights) for layer in layers for segment in layer.segments if segment.shared
        ]

    def take(self) -> list[Decision]:
        """The decisions of the call that ended; the next one starts empty."""
        decisions, self.decisions = self.decisions, []
        return decisions
