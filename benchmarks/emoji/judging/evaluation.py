"""A method sampled on every pair, and what is measured of its pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..world.pictures import Pictures
from ..world.small_world import SmallWorld

Measure = Callable[[Tensor, str, str], dict[str, Tensor]]
"""(pictures [N, 3, 64, 64] in [0, 1], subject, style) -> values [N] by name; ``Judge.score`` is one."""


@dataclass(frozen=True)
class Result:
    """A method's pictures [pairs x seeds, 3, 64, 64], pair by pair, and what was measured of each of them.

    values: the judge's, and whatever else. seconds: that sampling and measuring took.
    """

    pictures: Tensor
    values: dict[str, Tensor]
    seconds: float = 0.0

    @classmethod
    def joined(cls, pictures: Sequence[Tensor], values: Sequence[dict[str, Tensor]], seconds: float = 0.0) -> Result:
        """Of one batch a pair."""
        return cls(torch.cat(list(pictures)), {n: torch.cat([each[n] for each in values]) for n in values[0]}, seconds)

    def both_p(self) -> Tensor:
        """The judge's probability that the subject and the style are right, of each picture."""
        return self.values["subject_p"] * self.values["style_p"]

    def means(self) -> dict[str, float]:
        """Of every value: shares of subject_ok, style_ok, both; mean probabilities subject_p, style_p, both_p; ..."""
        return {name: float(value.float().mean()) for name, value in {**self.values, "both_p": self.both_p()}.items()}

    def by_style(self, styles: int) -> list[dict[str, float]]:
        """`means` of each style alone; the pairs are ordered style by style."""
        parts = {name: value.chunk(styles) for name, value in self.values.items()}
        return [Result(self.pictures, {n: v[i] for n, v in parts.items()}).means() for i in range(styles)]

    def gain(self, over: Result, pairs: int) -> tuple[float, float]:
        """Mean of both_p more than another method's on the same pairs and seeds, and its standard error over pairs."""
        gains = (self.both_p() - over.both_p()).view(pairs, -1).mean(dim=1)
        return float(gains.mean()), float(gains.std()) / pairs**0.5


def evaluate(
    small: SmallWorld,
    make: Callable[[str, str], Any],
    measure: Measure,
    subjects: Sequence[str],
    styles: Sequence[str],
    seeds: Sequence[int],
) -> Result:
    """Sample every pair, style by style and all seeds in one batch, and measure the pictures.

    make: (subject, style) -> model to sample with.
    """
    start, pictures, values = time.monotonic(), [], []
    for style in styles:
        for subject in subjects:
            pictures.append(small.decode(small.sample(make(subject, style), subject, style, seeds)))
            values.append(measure(pictures[-1], subject, style))
    return Result.joined(pictures, values, time.monotonic() - start)


def ceiling(
    small: SmallWorld, measure: Measure, pictures: Pictures, subjects: Sequence[str], styles: Sequence[str]
) -> Result:
    """The true pictures through the autoencoder, in the order of `evaluate`."""
    pairs = [(subject, style) for style in styles for subject in subjects]
    made = [small.reconstruct(pictures.picture(*pair)[None]) for pair in pairs]
    return Result.joined(made, [measure(picture, *pair) for picture, pair in zip(made, pairs, strict=True)])
