"""How the LoRAs on a model are routed: a policy, its settings, and what it wants to know of the weights."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..layers import FusedLayer, Segment, Weight
from ..policies import Policy, ScheduledPolicy, ScoredPolicy, StepContext
from .emphasis import negative_share
from .refinement import Refinement


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
        return self.refinement.emphasis or self.policy.own_emphasis

    def negative_share(self, cfg: float) -> float:
        """The share of its weights that the negative prompt's pass gets at that guidance scale."""
        return negative_share(self.asked_emphasis, cfg)

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
            weights = self.policy.weights(torch.tensor(log_ratio), lean, context)
        else:
            weights = self.scheduled(name, context)
        subject, style = self.refinement.bounded(weights)
        return float(subject), float(style)


def prepare(policy: Policy, refinement: Refinement, layers: Sequence[FusedLayer], blocks: str = "") -> Prepared:
    """Look at the weights, as far as anybody asks; ``blocks`` as in :class:`Rules`."""
    pairs = list(_shared(layers))
    if isinstance(policy, ScheduledPolicy) and pairs:
        index = {segment.name: i for i, (_, segment) in enumerate(pairs)}
        return Prepared(policy.prepare([layer.segment_deltas(segment) for layer, segment in pairs], blocks), index)
    if isinstance(policy, ScoredPolicy) and refinement.even_out:
        # Deltas beside the low-rank ones may depend on a base weight that cannot be read.
        deltas = (layer.segment_deltas(segment) for layer, segment in pairs if not segment.bypasses)
        ratios = [math.log((d.energy("subject") + 1e-30) / (d.energy("style") + 1e-30)) for d in deltas]
        return Prepared(loudness=statistics.median(ratios) if ratios else 0.0)
    return Prepared()


def _shared(layers: Sequence[FusedLayer]) -> Iterator[tuple[FusedLayer, Segment]]:
    return ((layer, segment) for layer in layers for segment in layer.segments if segment.shared)
