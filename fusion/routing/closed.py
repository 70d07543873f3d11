"""Deciding in closed form, where the settings allow it: by few operations a layer, on small tensors.

The decisions are those of the straightforward computation (:mod:`.measuring`, ``ScoredPolicy.weights``), which all
other settings take. What no layer waits for (the scores as they are recorded) is computed for all layers at once when
the call is over.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..layers import Joint, Probe, take
from ..policies import OF_MOVED, ScoredPolicy, StepContext, scores_of_moved, scores_of_pair
from ..records import Block
from .refinement import OWN, Refinement

# Bytes of features that wait to be measured: a little of what the model's largest layer makes, within these.
LEAST_HELD, MOST_HELD, SHARE_HELD = 2**22, 2**26, 1 / 8


def allows(policy: ScoredPolicy, settings: Refinement) -> bool:
    """Whether nothing but the policy's own score of a whole layer, at this step, goes into its decisions."""
    return not (
        settings.score not in (OWN, policy.score)
        or settings.granularity != "layer"
        or settings.even_out
        or settings.smoothing
        or settings.follow_cond
        or settings.group_attention
        or settings.cap
        or settings.floor
        or (policy.hard and settings.hysteresis)
    )


@dataclass
class _Samples:
    """Features of layers ``[batch, tokens, channels]``, and their norms once there are many."""

    held: dict[torch.Size, list[tuple[int, Tensor]]] = field(default_factory=dict)
    size: int = 0
    most: float = LEAST_HELD
    norms: list[tuple[list[int], Tensor]] = field(default_factory=list)

    def add(self, place: int, sample: Tensor, base: Tensor) -> None:
        """A sample of ``base``."""
        self.most = min(max(self.most, SHARE_HELD * base.numel() * base.element_size()), MOST_HELD)
        self.held.setdefault(sample.shape, []).append((place, sample))
        self.size += sample.numel() * sample.element_size()
        if self.size > self.most:
            self._measure()

    def all_norms(self) -> Tensor:
        """``||F||``, ``[layers, batch]`` float32."""
        self._measure()
        placed = {place: row for places, rows in self.norms for place, row in zip(places, rows.unbind(), strict=True)}
        return torch.stack([placed[place] for place in range(len(placed))])

    def _measure(self) -> None:
        for some in self.held.values():
            together = torch.stack([sample for _, sample in some])
            norms = torch.linalg.vector_norm(together, dim=(2, 3), dtype=torch.float32)
            self.norms.append(([place for place, _ in some], norms))
        self.held, self.size = {}, 0


@dataclass
class Closed:
    """The decisions of one call that were made in closed form.

    Attributes:
        rows: their places among all of the call's.
    """

    rows: list[int] = field(default_factory=list)
    _measured: list[Tensor] = field(default_factory=list)
    _weights: list[Tensor] = field(default_factory=list)
    _factors: dict[int, float] = field(default_factory=dict)  # of what was measured, to be the score
    _samples: _Samples = field(default_factory=_Samples)

    def decide(self, policy: ScoredPolicy, lean: float, context: StepContext, probe: Probe, row: int) -> Tensor | None:
        """Both weights ``[batch, 2]`` of a segment, or None where it has to be measured in the straightforward way."""
        by_norms = policy.score == "energy"
        if not (probe.measures_hidden if by_norms else probe.is_low_rank) or _differentiated(probe):
            return None
        if self._weights and self._weights[0].shape[0] != probe.base.shape[0]:
            return None  # layers of one batch lie in one table
        sample, most = None, policy.max_tokens
        if by_norms:
            sample, measured = take(probe.base, most), probe.norms(most)
        elif (asked := OF_MOVED.get(policy.score)) is not None:
            moved = probe.moved(asked.before, asked.after, most)
            measured, self._factors[row] = scores_of_moved(policy.score, moved)
        else:
            sample = take(probe.base, most)
            measured, self._factors[row] = scores_of_pair(policy.score, sample, probe.deltas(most))
        weights = policy.pair(measured, lean, context, probe.segment.pairing)
        if weights is not None:
            if by_norms and sample is not None:
                # The layer's output is written where its own part was.
                self._samples.add(len(self.rows), sample.clone() if sample is probe.base else sample, probe.base)
            self.rows.append(row)
            self._measured.append(measured)
            self._weights.append(weights)
        return weights

    def decide_together(
        self, policy: ScoredPolicy, lean: float, context: StepContext, joint: Joint, row: int
    ) -> Tensor | None:
        """Both weights of neighbouring segments ``[segments, batch, 2]``, the first of which is at a row; or None."""
        count, batch = len(joint.segments), joint.base.shape[0]
        if torch.is_grad_enabled() and (joint.base.requires_grad or joint.hidden.requires_grad):
            return None
        if self._weights and self._weights[0].shape[0] != batch:
            return None
        by_norms, factors = policy.score == "energy", [1.0] * count
        if by_norms:
            measured = joint.norms(policy.max_tokens)  # of a sample, all segments
            weights = policy.pair(measured.flatten(0, 1), lean, context, joint.segments[0].pairing)
            if weights is None:
                return None
            measured, weights = measured.transpose(0, 1), weights.unflatten(0, (batch, count)).transpose(0, 1)
            sample = take(joint.base, policy.max_tokens)
            sample = sample.clone() if sample is joint.base else sample
        else:
            runs, thin = list(joint.alike()), take(joint.hidden, policy.max_tokens)
            scores = torch.empty(count * batch, 2, device=thin.device) if len(runs) > 1 else None
            for first, last, channels in runs:
                into = None if scores is None else scores[first * batch : last * batch]
                if (asked := OF_MOVED.get(policy.score)) is not None:
                    moved = joint.moved(asked.before, asked.after, thin, first, last, channels, policy.max_tokens)
                    found, factor = scores_of_moved(policy.score, moved, into)
                else:
                    own = joint.sample(first, last, channels, policy.max_tokens)
                    deltas = joint.deltas(thin, first, last, channels)
                    found, factor = scores_of_pair(policy.score, own, deltas, into)
                factors[first:last] = [factor] * (last - first)
            scores = found if scores is None else scores
            weights = policy.pair(scores, lean, context, joint.segments[0].pairing)
            if weights is None:
                return None
            measured, weights = (values.unflatten(0, (count, batch)) for values in (scores, weights))
        for i, segment in enumerate(joint.segments):
            if by_norms:
                self._samples.add(len(self.rows), sample[..., joint.channels(segment)], joint.base)
            else:
                self._factors[row + i] = factors[i]
            self.rows.append(row + i)
        self._measured += measured.unbind()
        self._weights += weights.unbind()
        return weights

    def block(self) -> Block:
        """As they are recorded."""
        # The bounds are those of ``relative_energy`` and ``measure``.
        scores = torch.stack(self._measured)
        if self._factors:
            scores = scores * torch.tensor([self._factors[row] for row in self.rows])[:, None, None].to(
                scores.device, non_blocking=True
            )
        if scores.shape[-1] == 3:  # norms
            loudness = self._samples.all_norms().square().clamp_min(1e-12)
            scores = scores[..., :2].square() / loudness[..., None]
        logs = scores.clamp_min(1e-30).log()
        values = torch.cat([torch.stack(self._weights), scores, logs[..., :1] - logs[..., 1:]], dim=-1)
        return Block(tuple(self.rows), tuple(range(5)), values.permute(2, 0, 1)[..., None, None])


def _differentiated(probe: Probe) -> bool:
    return torch.is_grad_enabled() and (
        probe.base.requires_grad or (probe.hidden is not None and probe.hidden.requires_grad)
    )
