"""Which policy fuses best: the small world's judge on subject, style, and both at once.

``evaluate(small, judge, {"label": make_model, ...}, subjects, styles, seeds)``
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..methods.policies import Maker
from ..world.pictures import Pictures
from ..world.small_world import SmallWorld
from .judge import Judge
from .verdicts import between, harmonic, replicates


@dataclass(frozen=True)
class Result:
    """A method's pictures [pairs x seeds, 3, 64, 64], pair by pair, and the judge's values for each of them."""

    pictures: Tensor
    values: dict[str, Tensor]
    seconds: float

    def means(self) -> dict[str, float]:
        """Shares of subject_ok, style_ok, both; mean probabilities subject_p, style_p, and of their product both_p."""
        means = {name: float(value.float().mean()) for name, value in self.values.items()}
        return {**means, "both_p": float((self.values["subject_p"] * self.values["style_p"]).mean())}

    def by_style(self, styles: int) -> list[dict[str, float]]:
        """`means` of each style alone; the pairs are ordered style by style."""
        parts = {name: value.chunk(styles) for name, value in self.values.items()}
        return [Result(self.pictures, {n: v[i] for n, v in parts.items()}, 0.0).means() for i in range(styles)]


def evaluate(
    small: SmallWorld,
    judge: Judge,
    methods: dict[str, Maker],
    subjects: Sequence[str],
    styles: Sequence[str],
    seeds: Sequence[int],
    progress: Callable[[str, Result], None] = lambda label, result: None,
) -> dict[str, Result]:
    """Sample every (style, subject) pair by every method, all seeds in one batch, and judge the pictures."""
    results = {}
    for label, make in methods.items():
        start = time.monotonic()
        pictures, values = [], []
        for style in styles:
            for subject in subjects:
                model = make(small.model, small.lora("subject", subject), small.lora("style", style))
                made = small.decode(small.sample(model, subject, style, seeds))
                pictures.append(made)
                values.append(judge.score(made, subject, style))
        joined = {name: torch.cat([value[name] for value in values]) for name in values[0]}
        results[label] = Result(torch.cat(pictures), joined, time.monotonic() - start)
        progress(label, results[label])
    return results


HEADER = f"{'method':44} subject  style   both | both_p subj_p styl_p | both by style | s/picture"


def table_row(label: str, result: Result, styles: int) -> str:
    m = result.means()
    each = " ".join(f"{part['both']:.2f}" for part in result.by_style(styles))
    return (
        f"{label:44} {m['subject_ok']:7.2f} {m['style_ok']:6.2f} {m['both']:6.2f} | {m['both_p']:6.3f} "
        f"{m['subject_p']:6.3f} {m['style_p']:6.3f} | {each:13} | {result.seconds / len(result.pictures):.2f}"
    )


def compared(results: dict[str, Result], seeds: int) -> list[str]:
    """A line a method: harmonic mean of the subject rate and the style rate, and how far the first method is above it,
    both with their 95 % intervals over pairs."""
    rates = {
        label: [result.values[name].double().view(-1, seeds).numpy() for name in ("subject_ok", "style_ok")]
        for label, result in results.items()
    }
    first, *_ = (replicates(*values) for values in rates.values())
    hmeans = {
        label: float(harmonic(subject.mean()[None], style.mean()[None])[0]) for label, (subject, style) in rates.items()
    }
    best = next(iter(hmeans.values()))
    lines = [f"{'':44} hmean          95 % | first method's lead, 95 %"]
    for label, hmean in hmeans.items():
        drawn = replicates(*rates[label])
        own, lead = (f"{low:.2f} to {high:.2f}" for low, high in (between(drawn), between(first - drawn)))
        lines.append(f"{label:44} {hmean:5.2f}  {own} | {best - hmean:+.2f}, {lead}")
    return lines


def truth(
    small: SmallWorld, judge: Judge, pictures: Pictures, subjects: Sequence[str], styles: Sequence[str]
) -> Result:
    """The true pictures through the autoencoder: the ceiling."""
    made, values = [], []
    for style in styles:
        for subject in subjects:
            made.append(small.decode(small.encode(pictures.picture(subject, style)[None])))
            values.append(judge.score(made[-1], subject, style))
    return Result(torch.cat(made), {name: torch.cat([v[name] for v in values]) for name in values[0]}, 0.0)
