"""Measuring how far both LoRAs move a segment: by layer, by attention head or by token."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .grid import blurred, grid_of
from .policies.base import ScoredPolicy
from .probe import Probe
from .refinement import OWN, Refinement
from .scores import SCORES
from .segment import Segment
from .segments import ROLES


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


def measure(
    policy: ScoredPolicy, settings: Refinement, segment: Segment, probe: Probe, latent: tuple[int, ...]
) -> Measured:
    """Ask the policy's score, or the one that the settings prefer.

    Args:
        latent: size of the latent ``(..., height, width)``, to know where tokens lie.
    """
    scores = _scores(policy, settings, segment, probe, latent)
    # Scores are squares: the bound keeps an all-zero delta finite without touching any real one.
    return Measured(scores, (scores["subject"].clamp_min(1e-30) / scores["style"].clamp_min(1e-30)).log())


def _scores(
    policy: ScoredPolicy, settings: Refinement, segment: Segment, probe: Probe, latent: tuple[int, ...]
) -> dict[str, Tensor]:
    chosen = policy.score if settings.score == OWN else settings.score
    score, tokens = SCORES[chosen], probe.base.shape[1]
    stride = max(1, tokens // policy.max_tokens) if policy.max_tokens else 1
    if settings.granularity == "token" and tokens > 1:
        base = probe.base[:, :, None]
        grid = grid_of(tokens, probe.space or latent)
        each = {role: score(base, probe.delta(role)[:, :, None]) for role in ROLES}
        return {role: blurred(values, settings.blur, grid)[..., None] for role, values in each.items()}
    base = probe.base[:, ::stride]
    if settings.granularity == "head" and segment.head_width:
        heads = (-1, segment.head_width)
        base = base.unflatten(-1, heads).transpose(1, 2)
        deltas = {role: probe.delta(role, stride).unflatten(-1, heads).transpose(1, 2) for role in ROLES}
        return {role: score(base, delta)[:, None] for role, delta in deltas.items()}
    if chosen == "energy":
        loudness = base.float().square().sum((-2, -1)).clamp_min(1e-12)
        return {role: (e / loudness)[:, None, None] for role, e in probe.energies(stride).items()}
    return {role: score(base, probe.delta(role, stride))[:, None, None] for role in ROLES}
