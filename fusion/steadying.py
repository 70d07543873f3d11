"""Steadying what was measured: evened out over layers, smoothed over steps, shared between prompts, kept by winners."""

from __future__ import annotations

from torch import Tensor

from .memory import Batch, Memory, together
from .refinement import Refinement


class Steady:
    """The settings with the memory they need, for one run."""

    def __init__(self, settings: Refinement) -> None:
        self.settings = settings
        self.memory = Memory()

    def log_ratio(self, name: str, measured: Tensor, batch: Batch, loudness: float) -> Tensor:
        """The log ratio ``[batch, tokens, heads]`` as the settings want it.

        Args:
            name: of the segment, and of its call where it runs several times.
            measured: now.
            batch: which conditions it is of.
            loudness: log ratio of the files' own energies, for the first step.
        """
        settings = self.settings
        if not (settings.even_out or settings.smoothing or settings.follow_cond):
            return measured
        parts = batch.parts(measured)
        if parts is None:
            return measured
        found = []
        for key, part in zip(batch.keys, parts, strict=True):
            if settings.even_out:
                part = part - settings.even_out * self._mean(key, part, loudness)
            before = self.memory.before(name, key, part) if settings.smoothing else None
            if before is not None:
                part = settings.smoothing * before + (1 - settings.smoothing) * part
            self.memory.keep(name, key, part)
            if settings.follow_cond and key != batch.followed:
                followed = self.memory.before(name, batch.followed, part)
                part = part if followed is None else followed
            found.append(part)
        return together(found)

    def _mean(self, key: str, part: Tensor, loudness: float) -> Tensor | float:
        self.memory.add_to_mean(key, part)
        mean = self.memory.mean(key)
        return loudness if mean is None or mean.shape != part.shape[:1] else mean[:, None, None]

    def bonus(self, name: str, log_ratio: Tensor, batch: Batch) -> Tensor | float:
        """What is added to the log ratio in favour of whoever won the step before (hysteresis)."""
        parts = batch.parts(log_ratio)
        if parts is None:
            return 0.0
        bonuses = []
        for key, part in zip(batch.keys, parts, strict=True):
            won = self.memory.before(f"{name}:won", key, part)
            bonuses.append(part.new_zeros(part.shape) if won is None else self.settings.hysteresis * (2 * won - 1))
        return together(bonuses)

    def keep_winners(self, name: str, subject: Tensor, batch: Batch) -> None:
        """Remember the subject's weights, 0 or 1, for :meth:`bonus`."""
        for key, part in zip(batch.keys, batch.parts(subject) or (), strict=False):
            self.memory.keep(f"{name}:won", key, part)
