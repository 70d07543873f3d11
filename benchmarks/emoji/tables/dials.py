"""The page of strengths: what each dial does, as tables and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..judging.verdicts import Bench, Verdicts
from ..methods.runs import Entry, Pair, Runs

METHODS, ROLES = ("recommended", "sum"), ("subject", "style")
DIAL = (0.0, 0.02, 0.25, 0.5, 1.0, 1.5, 2.0)
LOUD = ("1/1", "2/1", "1/2")
PAGE, PLOT = Path("benchmarks") / "dials.md", Path("images") / "dials.png"
"""Of the base world."""


@dataclass(frozen=True)
class Point:
    """One strength: how far the pictures are from those without that LoRA, and the judge's mean probabilities."""

    distance: float
    subject: float
    style: float
    both: float

    @classmethod
    def of(
        cls, runs: Runs, bench: Bench, entry: Entry, without: Entry, pairs: Sequence[Pair], seeds: Sequence[int]
    ) -> Point:
        """Of pictures that have been sampled."""
        made, others = ([runs.pictures(each, pair, seeds) for pair in pairs] for each in (entry, without))
        seen = [bench.judge.score(batch, *pair) for batch, pair in zip(made, pairs, strict=True)]
        away = [(a - b).square().mean((1, 2, 3)).sqrt() for a, b in zip(made, others, strict=True)]
        means = (
            float(torch.cat([each[name].float() for each in seen]).mean()) for name in ("subject_p", "style_p", "both")
        )
        return cls(float(torch.cat(away).mean()), *means)


def turned(method: str, role: str, dial: Sequence[float] = DIAL) -> list[Entry]:
    """A method with one role's strength at each point of the dial, the other at 1; at 0 core's loader alone."""
    pairs = [(s, 1.0) if role == "subject" else (1.0, s) for s in dial]
    return [
        Entry(f"{a:g}/{b:g}:{method}", f"{a:g}/{b:g}:{method}" if min(a, b) else f"core:{a:g}/{b:g}") for a, b in pairs
    ]


def without(role: str) -> Entry:
    """The picture without that role's LoRA."""
    return turned(METHODS[0], role)[0]


def loud() -> list[Entry]:
    """Files that are twice as loud, at strengths 1."""
    return [Entry(f"loud {times}:{method}", f"loud {times}:{method}") for method in METHODS for times in LOUD]


def entries(dial: Sequence[float] = DIAL) -> list[Entry]:
    """Everything that is turned, once."""
    found = [entry for method in METHODS for role in ROLES for entry in turned(method, role, dial)]
    return list({entry.method: entry for entry in found}.values())


def _table(points: Sequence[Point], dial: Sequence[float]) -> list[str]:
    lines = ["| strength | distance to without | subject p | style p | both right |", "|---|---|---|---|---|"]
    lines += [
        f"| {strength:g} | {point.distance:.3f} | {point.subject:.2f} | {point.style:.2f} | {point.both:.2f} |"
        for strength, point in zip(dial, points, strict=True)
    ]
    return lines


def write(
    points: Mapping[tuple[str, str], Sequence[Point]],
    louder: Mapping[str, Verdicts],
    command: str,
    sampling: str,
    pairs: Sequence[Pair],
    seeds: Sequence[int],
    docs: Path,
    dial: Sequence[float] = DIAL,
    suffix: str = "",
) -> Path:
    """The page and its plot. Gives the page. dial: the strengths of the points. suffix: of both files' names."""
    page, plot = (docs / path.with_stem(path.stem + suffix) for path in (PAGE, PLOT))
    subjects, styles = (", ".join(dict.fromkeys(names)) for names in zip(*pairs, strict=True))
    parts = [
        "# Strengths as dials",
        f"```\n{command}\n```",
        f"{len(pairs)} pairs ({subjects}; each in {styles}), seeds {seeds[0]} to {seeds[-1]}, in the small world, "
        f"{sampling}: one tiny model and its files, no more. One strength is turned, the other stays at 1. *Distance*: "
        "root mean square of the pictures less those without the LoRA that is turned, of a range of 1. *p*: the "
        "judge's mean probability that the subject, and the style, is the right one; *both right*: share of pictures. "
        "`sum` is ComfyUI's own two loaders.",
        "![Distance to the picture without the LoRA, and the judge's probabilities, by strength]"
        f"(../images/{plot.name})",
    ]
    for (method, role), row in points.items():
        parts += [f"## `{method}`: {role}_strength", "\n".join(_table(row, dial))]
    lines = ["| method | as it is | subject's file twice as loud | style's file twice as loud |", "|---|---|---|---|"]
    for method in METHODS:
        rates = [louder[f"loud {times}:{method}"].hmean for times in LOUD]
        lines.append(f"| `{method}` | " + " | ".join(f"{rate:.2f}" for rate in rates) + " |")
    parts += [
        "## Files that were made louder",
        "Harmonic means of the subject rate and the style rate, strengths 1/1.",
        "\n".join(lines),
    ]
    _plot(points, dial, plot)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return page


def _plot(points: Mapping[tuple[str, str], Sequence[Point]], dial: Sequence[float], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(ROLES), figsize=(9, 6), sharex=True)
    for column, role in enumerate(ROLES):
        for method, dashes in zip(METHODS, ("-", "--"), strict=True):
            row = points[method, role]
            axes[0][column].plot(dial, [point.distance for point in row], dashes, color="black", label=method)
            for name, colour in (("subject", "tab:orange"), ("style", "tab:blue")):
                values = [getattr(point, name) for point in row]
                axes[1][column].plot(dial, values, dashes, color=colour, label=f"{name}, {method}")
        axes[0][column].set_title(f"{role}_strength turned, the other 1")
        axes[1][column].set_ylim(0, 1)
    axes[0][0].set_ylabel("distance to without")
    axes[1][0].set_ylabel("judge's probability")
    axes[0][0].legend(frameon=False)
    axes[1][0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=90)
