"""How the LoRAs on a model are routed: a policy, its settings, and what it wants to know of the weights."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from ..layers import FusedLayer, Pairing, Segment, Weight
from ..policies import Policy, ScheduledPolicy, ScoredPolicy, StepContext
from .emphasis import effective, negative_share, push
from .refinement import Refinement


@dataclass(frozen=True)
class Prepared:
    """What a policy wants to know of the weights, once a model.

    Attributes:
        statistics: of a scheduled policy.
        index: of each shared segment in them.
        loudness: log of how much louder the subject's file is than the style's at equal strengths, the middle of all
            layers.
        pairings: by name, of all shared segments.
        overall: the strongest that each role is anywhere.
    """

    statistics: Any = None
    index: dict[str, int] = field(default_factory=dict)
    loudness: float = 0.0
    pairings: Mapping[str, Pairing] = field(default_factory=dict)
    overall: Pairing = Pairing()

    @cached_property
    def presence(self) -> float:
        """How far both LoRAs are there in the model as a whole: a mean in which layers that one of them hardly touches
        count as little as those that it does not have."""
        if not self.pairings:
            return self.overall.in_strength
        kinds = [pairing.in_kind for pairing in self.pairings.values()]
        both = [kind * pairing.presence for kind, pairing in zip(kinds, self.pairings.values(), strict=True)]
        return sum(both) / sum(kinds) if sum(kinds) else 0.0


@dataclass(frozen=True)
class Rules:
    """Frozen, and the same for all runs of a spec, on whatever devices.

    Attributes:
        policy: how segments are decided.
        refinement: with what settings.
        prepared: what :func:`prepare` gave for both.
        blocks: whose blocks the model has, "SDXL" or "FLUX"; empty for others.
    """

    policy: Policy
    refinement: Refinement = Refinement()
    prepared: Prepared = Prepared()
    blocks: str = ""

    @property
    def asked_emphasis(self) -> float:
        """How often the LoRAs' effect is to count in the picture (:mod:`.emphasis`)."""
        if self.refinement.emphasis:
            return self.refinement.emphasis
        own = self.policy.own_emphasis
        return 1 + (own - 1) * self.prepared.presence if self.policy.fades else own

    def negative_share(self, cfg: float) -> float:
        """The share of its weights that the negative prompt's pass gets at that guidance scale."""
        return negative_share(self.asked_emphasis, cfg)

    def push(self, cfg: float) -> float:
        """How many times their weights all passes get at that scale: more than once only where the user says so."""
        times = push(self.asked_emphasis, cfg)
        return times if self.refinement.emphasis else min(1.0, times)

    def counts(self, cfg: float) -> float:
        """How often the LoRAs' effect counts in the picture at that scale."""
        return self.refinement.emphasis or effective(self.asked_emphasis, cfg)

    def cooler(self, cfg: float) -> float:
        """The emphasis to try next where that burns: once less, and no less than once."""
        return max(1.0, self.counts(cfg) - 1)

    def preference(self, name: str, context: StepContext) -> float:
        """What is preferred in a segment before anything is measured; above 0 the subject."""
        return self.refinement.preference(name, context, self.blocks)

    def scheduled(self, name: str, context: StepContext) -> tuple[float, float]:
        """Weights (subject, style) that a scheduled policy gives a segment at a step."""
        assert isinstance(self.policy, ScheduledPolicy)
        return self.policy.weights_at(self.prepared.statistics, self.prepared.index[name], context)

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
            lean = self.preference(name, context)
            pairing = self.prepared.pairings.get(name, Pairing())
            weights = self.policy.weights(torch.tensor(log_ratio), lean, context, pairing)
        else:
            weights = self.scheduled(name, context)
        subject, style = self.refinement.bounded(weights)
        return float(subject), float(style)


def prepare(policy: Policy, refinement: Refinement, layers: Sequence[FusedLayer], blocks: str = "") -> Prepared:
    """Look at the weights, as far as anybody asks; ``blocks`` as in :class:`Rules`."""
    pairs = list(_shared(layers))
    known = Prepared(
        pairings={segment.name: segment.pairing for _, segment in pairs},
        overall=_strongest(segment.pairing for layer in layers for segment in layer.segments),
    )
    if isinstance(policy, ScheduledPolicy) and pairs:
        index = {segment.name: i for i, (_, segment) in enumerate(pairs)}
        deltas = [layer.segment_deltas(segment) for layer, segment in pairs]
        return replace(known, statistics=policy.prepare(deltas, blocks), index=index)
    if isinstance(policy, ScoredPolicy) and refinement.even_out:
        ratios = [segment.pairing.loudness for _, segment in pairs if segment.pairing.loudness is not None]
        return replace(known, loudness=statistics.median(ratios) if ratios else 0.0)
    return known


def _strongest(pairings: Iterable[Pairing]) -> Pairing:
    strengths = [pairing.strengths for pairing in pairings]
    return Pairing((max((s for s, _ in strengths), default=0.0), max((s for _, s in strengths), default=0.0)))


def _shared(layers: Sequence[FusedLayer]) -> Iterator[tuple[FusedLayer, Segment]]:
    return ((layer, segment) for layer in layers for segment in layer.segments if segment.shared)
