"""What the judge says of a table's pictures, and how sure one may be of it.

The headline of a method is the **harmonic mean of two rates**: the share of its pictures whose subject is right, and
the share whose style is right. A method that gives up one for the other has a low harmonic mean.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..methods.runs import Entry, Pair, Runs
from ..world.files import STYLE_SUBJECTS
from ..world.pictures import Pictures
from .judge import Judge

REPLICATES = 10_000
Array = np.ndarray


def harmonic(subject: Array, style: Array) -> Array:
    """Harmonic mean, 0 where both are 0."""
    total = subject + style
    return np.divide(2 * subject * style, total, out=np.zeros_like(total), where=total > 0)


def replicates(subject: Array, style: Array, groups: Sequence[object] | None = None) -> Array:
    """The harmonic mean ``[REPLICATES]`` of as many pairs drawn with replacement, the same for every method.

    subject, style: 1 where right, ``[pairs, seeds]``. groups: one name a pair; then whole groups of pairs are drawn.
    """
    _, group = np.unique([str(g) for g in groups or range(len(subject))], return_inverse=True)
    count = group.max() + 1
    drawn = np.random.default_rng(0).integers(0, count, (REPLICATES, count))
    size = np.bincount(group)[drawn].sum(axis=1)
    means = [np.bincount(group, rates.mean(axis=1))[drawn].sum(axis=1) / size for rates in (subject, style)]
    return harmonic(*means)


@dataclass(frozen=True)
class Verdicts:
    """A method's figures, each ``[pairs, seeds]`` float64.

    subject, style, both: 1 where right. p: the judge's probability of subject times that of style. distance: of the
    subject's features to the true picture's, 0 to 2. look: 1 where the style is that of the subject LoRA's training
    pictures. intruder: 1 where a training picture of the style LoRA is nearer than the true picture; NaN if those
    pictures are not at hand.
    """

    subject: Array
    style: Array
    both: Array
    p: Array
    distance: Array
    look: Array
    intruder: Array

    def rate(self, name: str) -> float:
        """Mean over all pictures."""
        return float(getattr(self, name).mean())

    @property
    def hmean(self) -> float:
        """Harmonic mean of the subject rate and the style rate."""
        return float(harmonic(self.subject.mean()[None], self.style.mean()[None])[0])

    def replicates(self, groups: Sequence[object] | None = None) -> Array:
        """See the function of that name."""
        return replicates(self.subject, self.style, groups)

    def interval(self) -> tuple[float, float]:
        """95 % interval of the harmonic mean, bootstrapped over pairs."""
        return between(self.replicates())

    def gain(self, other: Verdicts, name: str = "p") -> tuple[float, float]:
        """Mean of a figure more than another method's, on the same pictures, and its standard error over pairs."""
        gains = (getattr(self, name) - getattr(other, name)).mean(axis=1)
        return float(gains.mean()), float(gains.std(ddof=1) / len(gains) ** 0.5)


def between(values: Array, share: float = 0.95) -> tuple[float, float]:
    """The middle 95 %, or another share."""
    low, high = np.quantile(values, ((1 - share) / 2, (1 + share) / 2))
    return float(low), float(high)


def difference(
    ours: Verdicts, other: Verdicts, groups: Sequence[object] | None = None
) -> tuple[float, tuple[float, float]]:
    """Of the harmonic means, on the same pairs; and its 95 % interval, bootstrapped over pairs, or groups of them."""
    return ours.hmean - other.hmean, between(ours.replicates(groups) - other.replicates(groups))


@dataclass(frozen=True)
class Bench:
    """The judge and what it compares with.

    training: of each style, the features ``[120, 128]`` of the pictures its LoRA was trained on; empty if they are not
    at hand.
    """

    judge: Judge
    training: dict[str, Tensor]

    @classmethod
    def load(cls, world: Path | None, pictures: Pictures | None) -> Bench:
        """With the style LoRAs' training pictures, where the world's folder lists them."""
        judge, training = Judge.load(), {}
        if pictures is not None and world is not None and (world / STYLE_SUBJECTS).is_file():
            names = json.loads((world / STYLE_SUBJECTS).read_text(encoding="utf-8"))
            for style in pictures.holdout_styles:
                images = pictures.images[pictures.where(names, [style])].float() / 255
                training[style] = judge.features(images)
        return cls(judge, training)

    def verdicts(self, images: Sequence[Tensor], pairs: Sequence[Pair]) -> Verdicts:
        """Of pictures ``[seeds, 3, 64, 64]``, one batch a pair."""
        rows = []
        for batch, (subject, style) in zip(images, pairs, strict=True):
            seen = self.judge.score(batch, subject, style)
            intruder = torch.full((len(batch),), float("nan"))
            if style in self.training:
                nearest = (self.judge.features(batch) @ self.training[style].T).amax(dim=1)
                intruder = nearest > 1 - seen["distance"]
            p = seen["subject_p"] * seen["style_p"]
            right = [seen[name] for name in ("subject_ok", "style_ok", "both")]
            rows.append(
                torch.stack([t.double() for t in (*right, p, seen["distance"], seen["training_look"], intruder)])
            )
        return Verdicts(*torch.stack(rows, dim=1).numpy())

    def of(self, runs: Runs, entry: Entry, pairs: Sequence[Pair], seeds: Sequence[int]) -> Verdicts:
        """Of a row whose pictures have been sampled."""
        return self.verdicts([runs.pictures(entry, pair, seeds) for pair in pairs], pairs)
