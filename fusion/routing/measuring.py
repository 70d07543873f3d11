"""Measuring how far both LoRAs move a segment: by layer, by attention head or by token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..layers import Probe, Segment, take
from ..policies import SCORES, Score, ScoredPolicy, relative_energy
from ..roles import ROLES
from .grid import Picture, blurred
from .refinement import OWN, Refinement


@dataclass(frozen=True)
class Measured:
    """Scores of both roles and their log ratio, ``[batch, 1, 1]``, ``[batch, 1, heads]`` or ``[batch, tokens, 1]``."""

    scores: dict[str, Tensor]
    log_ratio: Tensor

    def fits(self, segment: Segment, probe: Probe) -> bool:
        """Whether what was measured for another segment can stand for this one too."""
        batch, tokens, heads = self.log_ratio.shape
        own_heads = (segment.stop - segment.start) // segment.head_width if segment.head_width else 1
        return batch == probe.base.shape[0] and tokens in (1, probe.base.shape[1]) and heads in (1, own_heads)


def measure(policy: ScoredPolicy, settings: Refinement, segment: Segment, probe: Probe, picture: Picture) -> Measured:
    """Ask the policy's score, or the one that the settings prefer.

    Args:
        picture: where tokens lie.
    """
    scores = _scores(policy, settings, segment, probe, picture)
    # Scores are squares: the bound keeps an all-zero delta finite without touching any real one.
    return Measured(scores, (scores["subject"].clamp_min(1e-30) / scores["style"].clamp_min(1e-30)).log())


def _scores(
    policy: ScoredPolicy, settings: Refinement, segment: Segment, probe: Probe, picture: Picture
) -> dict[str, Tensor]:
    score = SCORES[policy.score if settings.score == OWN else settings.score]
    if settings.granularity == "token" and probe.base.shape[1] > 1:
        base = probe.base[:, :, None]
        each = _by_role(score, base, [probe.delta(role)[:, :, None] for role in ROLES])
        # Rows that nobody can tell apart, and those of a text, have no place in the picture.
        alone = probe.mixed or segment.of_text
        place = None if alone else picture.place(probe.base.shape[1], probe.space)
        return {role: blurred(values, settings.blur, place)[..., None] for role, values in each.items()}
    base = take(probe.base, policy.max_tokens)
    if settings.granularity == "head" and segment.head_width:
        heads = (-1, segment.head_width)
        base = base.unflatten(-1, heads).transpose(1, 2)
        deltas = [probe.delta(role, policy.max_tokens).unflatten(-1, heads).transpose(1, 2) for role in ROLES]
        return {role: values[:, None] for role, values in _by_role(score, base, deltas).items()}
    if score is relative_energy:
        loudness = base.float().square().sum((-2, -1)).clamp_min(1e-12)
        return {role: (e / loudness)[:, None, None] for role, e in probe.energies(policy.max_tokens).items()}
    deltas = [probe.delta(role, policy.max_tokens) for role in ROLES]
    return {role: values[:, None, None] for role, values in _by_role(score, base, deltas).items()}


def _by_role(score: Score, base: Tensor, deltas: list[Tensor]) -> dict[str, Tensor]:
    """The score of each role's delta; what it asks of the base alone is computed once for both."""
    return dict(zip(ROLES, score(base, torch.stack(deltas)), strict=True))
