"""Steadying what was measured: evened out over layers, smoothed over steps, shared between prompts, kept by winners.

What is remembered is keyed by condition ("positive.0") and kept for the whole batch of it, so that neither packing
conditions together nor splitting a batch changes a decision; and it moves on with the step, not with the call, so that
samplers that call the model several times a step decide alike in all of them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..layers import APART, Batch, Pairing
from .refinement import Refinement


@dataclass
class Memory:
    """Tensors of the step before (read) and of this one (written), by name and condition.

    Calls that run at once write different conditions; what is read may have been written on another device.
    """

    step: int = 0
    _before: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    _now: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    _sums: dict[str, list[Tensor]] = field(default_factory=dict)
    _means: dict[str, Tensor] = field(default_factory=dict)

    def go_to(self, step: int) -> None:
        """What was written becomes what is read once the step changes."""
        if step == self.step:
            return
        self.step = step
        self._before |= self._now
        self._now = {}
        for key, values in self._sums.items():
            self._means[key] = torch.stack(values).mean(0)
        self._sums = {}

    def before(self, name: str, key: str, like: Tensor) -> Tensor | None:
        """What was kept at the step before, if it is shaped as ``like``."""
        kept = self._before.get((name, key))
        return kept.to(like.device) if kept is not None and kept.shape == like.shape else None

    def forget(self, keys: Collection[str]) -> None:
        """What was written of these conditions in this step."""
        self._now = {place: kept for place, kept in self._now.items() if place[1] not in keys}
        self._sums = {key: kept for key, kept in self._sums.items() if key not in keys}

    def keep(self, name: str, key: str, values: Tensor) -> None:
        self._now[name, key] = values

    def add_to_mean(self, key: str, values: Tensor) -> None:
        """Count a layer's values ``[batch, 1 or tokens, 1 or heads]`` in the mean over layers."""
        kept = self._sums.setdefault(key, [])
        per_sample = values.mean((1, 2)).to(kept[0].device if kept else values.device)
        if not kept or kept[0].shape == per_sample.shape:
            kept.append(per_sample)

    def mean(self, key: str) -> Tensor | None:
        """Mean over layers at the step before, ``[batch]``."""
        return self._means.get(key)


class Steady:
    """The settings with the memory they need, for one run."""

    def __init__(self, settings: Refinement) -> None:
        self.settings = settings
        self.memory = Memory()

    def log_ratio(
        self,
        name: str,
        measured: Tensor,
        batch: Batch,
        loudness: float,
        pairing: Pairing = Pairing(),  # noqa: B008
    ) -> Tensor:
        """The log ratio ``[batch, tokens, heads]`` as the settings want it.

        Args:
            name: of the segment, and of its call where it runs several times.
            measured: now.
            batch: which conditions it is of.
            loudness: log ratio of the files' own energies, for the first step.
            pairing: of the segment. What is evened out is the files' loudness, not the strengths that the user chose.
        """
        settings = self.settings
        if not (settings.even_out or settings.smoothing or settings.follow_cond):
            return measured
        parts = batch.parts(measured)
        if parts is None:
            return measured
        found = []
        for key, part in zip(batch.places, parts, strict=True):
            if settings.even_out:
                part = part - settings.even_out * self._mean(key, part, loudness, pairing)
            before = self.memory.before(name, key, part) if settings.smoothing else None
            if before is not None:
                part = settings.smoothing * before + (1 - settings.smoothing) * part
            self.memory.keep(name, key, part)
            followed_key = batch.place_of(batch.followed)
            if settings.follow_cond and key != followed_key:
                followed = self.memory.before(name, followed_key, part)
                part = part if followed is None else followed
            found.append(part)
        return batch.joined(found)

    def _mean(self, key: str, part: Tensor, loudness: float, pairing: Pairing) -> Tensor | float:
        if pairing.in_kind:  # where one of them is not there, nothing can be learnt of its loudness
            self.memory.add_to_mean(key, (part - pairing.turned).clamp(-APART, APART))
        mean = self.memory.mean(key)
        return loudness if mean is None or mean.shape != part.shape[:1] else mean[:, None, None].to(part.device)

    def bonus(self, name: str, log_ratio: Tensor, batch: Batch) -> Tensor | float:
        """What is added to the log ratio in favour of whoever won the step before (hysteresis)."""
        parts = batch.parts(log_ratio)
        if parts is None:
            return 0.0
        bonuses = []
        for key, part in zip(batch.places, parts, strict=True):
            won = self.memory.before(f"{name}:won", key, part)
            bonuses.append(part.new_zeros(part.shape) if won is None else self.settings.hysteresis * (2 * won - 1))
        return batch.joined(bonuses)

    def keep_winners(self, name: str, subject: Tensor, batch: Batch) -> None:
        """Remember the subject's weights, 0 or 1, for :meth:`bonus`."""
        for key, part in zip(batch.places, batch.parts(subject) or (), strict=False):
            self.memory.keep(f"{name}:won", key, part)
