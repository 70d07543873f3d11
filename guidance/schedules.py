"""When guidance acts: positions in the sigma schedule and the window of guided steps."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass


def step_of_sigma(sigma: float, sigmas: Sequence[float], tolerance: float = 1e-4) -> int:
    """Index of the step whose interval of the descending schedule `sigmas` holds `sigma`.

    `sigmas` has steps + 1 entries. Read off sigma rather than counted in calls, because higher-order samplers evaluate
    the model several times in a step and some choose sigmas of their own. `tolerance` is relative: a sigma that equals
    an entry up to rounding belongs to the step that starts there, the nearest one where a large shift has put several
    entries closer together than that.
    """
    if len(sigmas) < 2:
        raise ValueError("a sigma schedule needs at least two entries")
    nearest = min(range(len(sigmas) - 1), key=lambda i: abs(sigmas[i] - sigma))
    if abs(sigmas[nearest] - sigma) <= tolerance * sigma:
        return nearest
    ascending = [-s for s in sigmas]
    index = bisect_right(ascending, -sigma) - 1
    return min(max(index, 0), len(sigmas) - 2)


def is_part_of(sigmas: Sequence[float], whole: Sequence[float], tolerance: float = 1e-6) -> bool:
    """Whether the schedule `sigmas` is a piece of the schedule `whole`, entry by entry; `tolerance` is relative."""

    def same(a: float, b: float) -> bool:
        return abs(a - b) <= tolerance * max(a, b)

    starts = range(len(whole) - len(sigmas) + 1)
    return any(all(same(a, b) for a, b in zip(sigmas, whole[start:], strict=False)) for start in starts)


def estimated_schedule(
    sigmas: Sequence[float], start: float, end: float, sigma_at: Callable[[float], float]
) -> list[float]:
    """The descending schedule that a piece of it may come from: the rest has steps as long as the piece's mean.

    sigmas: of the piece, its steps + 1. start, end: its ends in percent of sampling, 0 = full noise, 1 = none.
    sigma_at: sigma at a percent.
    """
    length = max((end - start) / (len(sigmas) - 1), 1e-3)
    before, after = round(start / length), round((1.0 - end) / length)
    earlier = [sigma_at(start * step / before) for step in range(before)]
    later = [sigma_at(end + (1.0 - end) * (step + 1) / after) for step in range(after)]
    return [*(s for s in earlier if s > sigmas[0]), *sigmas, *(s for s in later if s < sigmas[-1])]


@dataclass(frozen=True)
class GuidanceWindow:
    """The part of sampling in which guidance acts.

    start, end: fractions of the steps, 0 = first step, 1 = after the last. Early predictions are blurry means and late
    artefacts cannot be cleaned up any more, hence a window (FreeDoM, arXiv 2303.09833; MPGD, arXiv 2311.16424).
    every: guide each n-th step of the window only. The last step of a run is guided only where end is 1.
    """

    start: float = 0.4
    end: float = 0.8
    every: int = 1

    def __post_init__(self) -> None:
        if not 0.0 <= self.start < self.end <= 1.0:
            raise ValueError(f"the guidance window needs 0 <= start < end <= 1, got start {self.start}, end {self.end}")
        if self.every < 1:
            raise ValueError(f"guidance every n-th step needs n >= 1, got {self.every}")

    def span(self, steps: int) -> tuple[int, int]:
        """First step of the window (from 0) and the step after its last, in a run of `steps`."""
        first = self._boundary(self.start, steps)
        if self.end < 1.0 and steps > 1:
            # In a run of few steps, too, the last one is left for cleaning up.
            first = min(first, steps - 2)
        # A short run never loses its guidance to rounding: the window holds one step at least.
        return first, max(self._boundary(self.end, steps), first + 1)

    def is_active(self, step: int, steps: int) -> bool:
        """Whether step `step` (from 0) of `steps` is guided."""
        first, last = self.span(steps)
        return first <= step < last and (step - first) % self.every == 0

    @staticmethod
    def _boundary(fraction: float, steps: int) -> int:
        return min(int(fraction * steps + 0.5), steps - 1) if fraction < 1.0 else steps
