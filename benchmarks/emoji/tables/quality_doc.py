"""Writes docs/benchmarks/quality.md with its plot and contact sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ..judging.verdicts import Verdicts, difference
from ..methods.runs import Entry, Pair
from ..world.splits import TUNE
from . import burn, quality_rows
from .contact_sheet import contact_sheet

MARK = "<!-- below: by hand, kept -->"
RECOMMENDED = quality_rows.RECOMMENDED


@dataclass(frozen=True)
class Quality:
    """All that the document tells.

    Attributes:
        command: that makes it.
        sampling: how pictures are made.
        split: name of the pairs' split.
        pairs, seeds: that were sampled.
        rows: of the headline table.
        doubled: as of ``quality_rows.doubled``; empty leaves the section out.
        verdicts: of every row of ``rows`` and ``doubled``, by label.
        ceiling: of the true pictures through the autoencoder.
        tuned: stacking at its best strengths; grid: the verdicts by which they were chosen, by label.
        tune_seeds: seeds of the grid.
        burnt: burn and the second judge's verdicts, by label; empty leaves the sections out.
    """

    command: str
    sampling: str
    split: str
    pairs: Sequence[Pair]
    seeds: Sequence[int]
    rows: Sequence[Entry]
    doubled: Sequence[tuple[str, Sequence[Entry]]]
    verdicts: dict[str, Verdicts]
    ceiling: Verdicts | None
    tuned: Sequence[Entry]
    grid: dict[str, Verdicts]
    tune_seeds: Sequence[int]
    burnt: Mapping[str, burn.Burnt] = field(default_factory=dict)

    def ranked(self) -> list[Entry]:
        """Rows by falling harmonic mean."""
        return sorted(self.rows, key=lambda row: -self.verdicts[row.label].hmean)

    def next_best(self) -> Entry:
        """The rival with the highest harmonic mean."""
        return next(row for row in self.ranked() if row.kind == "rival")

    def json(self) -> dict[str, dict[str, dict[str, object]]]:
        """``{"policies": {label: {subject, style, both, hmean, ci}}}``."""
        return {"policies": {row.label: _figures(self.verdicts[row.label]) for row in self.ranked()}}


def _figures(v: Verdicts) -> dict[str, object]:
    rates = {name: round(v.rate(name), 4) for name in ("subject", "style", "both")}
    return {**rates, "hmean": round(v.hmean, 4), "ci": [round(bound, 4) for bound in v.interval()]}


def table(q: Quality) -> list[str]:
    """The headline."""
    lines = [
        "| method | subject | style | both | **hmean** | 95 % | p(both) | distance | training look | intruder |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in q.ranked():
        label = f"**`{row.label}`**" if row.label == RECOMMENDED else f"`{row.label}`"
        lines.append(_row(label, q.verdicts[row.label]))
    if q.ceiling is not None:
        lines.append(_row("*true pictures through the autoencoder*", q.ceiling))
    return lines


def _row(label: str, v: Verdicts) -> str:
    low, high = v.interval()
    rates = " | ".join(f"{v.rate(name):.2f}" for name in ("subject", "style", "both"))
    intruder = "" if v.rate("intruder") != v.rate("intruder") else f"{v.rate('intruder'):.2f}"
    rest = f"{v.rate('p'):.3f} | {v.rate('distance'):.2f} | {v.rate('look'):.2f} | {intruder}"
    return f"| {label} | {rates} | **{v.hmean:.2f}** | {low:.2f}-{high:.2f} | {rest} |"


def claims(q: Quality) -> list[str]:
    """What we hold ourselves to, and whether it holds."""
    ours, rival = q.verdicts[RECOMMENDED], q.next_best()
    gain, (low, high) = difference(ours, q.verdicts[rival.label])
    _, by_subject = difference(ours, q.verdicts[rival.label], [subject for subject, _ in q.pairs])
    lines = [
        f"- `recommended` against the next best, `{rival.label}`: harmonic mean {gain:+.3f}, 95 % interval over pairs "
        f"{low:+.3f} to {high:+.3f}: "
        + ("clear of zero." if low > 0 else "**not clear of zero.**")
        + f" (Pairs share subjects: over whole subjects {by_subject[0]:+.3f} to {by_subject[1]:+.3f}.)"
    ]
    losses = [
        f"{100 * (v.rate(name) - ours.rate(name)):.0f} points of {name} to `{row.label}`"
        for row in q.rows
        if row.kind == "rival" and (v := q.verdicts[row.label]).hmean < ours.hmean
        for name in ("subject", "style")
        if v.rate(name) - ours.rate(name) > 0.02
    ]
    lines.append(
        "- It loses more than 2 points of subject or of style to a rival that it beats: "
        + (", ".join(losses) if losses else "nowhere")
        + "."
    )
    if q.doubled:
        (_, mine), *others = worst_losses(q)
        least = min(loss for _, loss in others)
        said = ", ".join(f"`{label}` {loss:.2f}" for label, loss in others)
        lines.append(
            f"- With one file twice as loud, whichever is worse: `recommended` loses {mine:.2f} of its harmonic "
            f"mean, {said}: " + ("less than half." if mine < least / 2 else "**not less than half.**")
        )
    return lines


def worst_losses(q: Quality) -> list[tuple[str, float]]:
    """(method, what it loses of its harmonic mean where the LoRA that is too strong hurts it most)."""
    found = []
    for label, rows in q.doubled:
        plain, *twice = (q.verdicts[row.label].hmean for row in rows)
        found.append((label, plain - min(twice)))
    return found


def imbalance(q: Quality) -> list[str]:
    """One file twice as loud."""
    lines = [
        "| method | as it is | subject twice as loud | loss | style twice as loud | loss |",
        "|---|---|---|---|---|---|",
    ]
    for label, rows in q.doubled:
        plain, subject, style = (q.verdicts[row.label].hmean for row in rows)
        lines.append(
            f"| `{label}` | {plain:.2f} | {subject:.2f} | {plain - subject:+.2f} | {style:.2f} | {plain - style:+.2f} |"
        )
    return lines


def by_pair(q: Quality) -> list[str]:
    """Share of pictures with both right, pair by pair, of ours and the three best rivals."""
    shown = [next(row for row in q.rows if row.label == RECOMMENDED)]
    shown += [row for row in q.ranked() if row.kind == "rival"][:3]
    lines = [
        "| subject | style | " + " | ".join(f"`{row.label}`" for row in shown) + " |",
        "|---" * (2 + len(shown)) + "|",
    ]
    for i, (subject, style) in enumerate(q.pairs):
        cells = " | ".join(f"{q.verdicts[row.label].both[i].mean():.2f}" for row in shown)
        lines.append(f"| {subject} | {style} | {cells} |")
    return lines


DEFINITIONS = """\
A judge that no method can see looks at every picture (`judge.py`). **subject**: share of pictures nearer to the right
subject's true picture than to those of the other 23 held-out subjects; **style**: share whose style it names right, of
sixteen; **both**: both on the same picture. The headline is **hmean**, the harmonic mean of the subject rate and the
style rate, with a 95 % interval from 10,000 bootstraps over pairs. **p(both)**: mean product of the judge's
probabilities. **distance**: one minus the cosine between the judge's subject features of the picture and of the true
picture. Leakage: **training look**, share of pictures whose style the judge names as noto or twemoji, those of the
subject LoRA's training drawings; **intruder**, share of pictures that one of the style LoRA's 120 training pictures is
nearer to than the true picture is."""


def document(q: Quality, images: str) -> str:
    """The Markdown. images: the beginning of the images' paths as seen from the document."""
    subjects = ", ".join(dict.fromkeys(subject for subject, _ in q.pairs))
    styles = ", ".join(dict.fromkeys(style for _, style in q.pairs))
    chosen = " and ".join(f"*{row.label}*" for row in q.tuned)
    parts = [
        "# Quality in the small world",
        f"```\n{q.command}\n```",
        f"Split *{q.split}*: {subjects}, each in {styles}: {len(q.pairs)} pairs, seeds {q.seeds[0]} to {q.seeds[-1]}, "
        f"{len(q.pairs) * len(q.seeds)} pictures a row; {q.sampling}, strengths 1/1 "
        "unless a row says otherwise, policies with their defaults (`balanced` is `recommended`). What the world is: "
        "[benchmarks/emoji](../../benchmarks/emoji/README.md).",
        DEFINITIONS,
        "## Headline",
        "\n".join(table(q)),
        "\n".join(claims(q)),
        f"![Harmonic means with their intervals]({images}.png)",
        f"{chosen}: stacking at the best strengths of a grid, in both prompts' passes and on the positive prompt alone "
        "(what ComfyUI's hooks do; made here as `craft` without its windows), found on the tune pairs"
        + (f" ({', '.join(TUNE)}; seeds {q.tune_seeds[0]}-{q.tune_seeds[-1]}):" if q.grid else "."),
    ]
    if q.grid:
        head = ["| strengths | subject | style | both | hmean |", "|---|---|---|---|---|"]
        cells = [
            f"| {label} | "
            + " | ".join(f"{v.rate(n):.2f}" for n in ("subject", "style", "both"))
            + f" | {v.hmean:.2f} |"
            for label, v in q.grid.items()
        ]
        parts.append("\n".join(head + cells))
    if q.doubled:
        parts += ["## One file twice as loud", "Harmonic means, and what is lost of them.", "\n".join(imbalance(q))]
    if q.burnt:
        ranked = [*(row.label for row in q.ranked()), burn.STYLE_ALONE.label, burn.TRUTH]
        parts += burn.sections({label: q.burnt[label] for label in ranked}, RECOMMENDED)
    parts += [
        "## Pair by pair",
        "Share of pictures with both right: ours and the three best rivals.",
        "\n".join(by_pair(q)),
        "## Pictures",
        f"![The first seed's picture of each pair]({images}_sheet.jpg)",
        "Rows: the pairs in the order of the table above, first seed. *ours* is `recommended`.",
    ]
    return "\n\n".join(parts) + "\n"


def plot(q: Quality, path: Path) -> None:
    """Bars of the harmonic means with their intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = q.ranked()[::-1]
    values = [q.verdicts[row.label] for row in rows]
    means, ends = [v.hmean for v in values], [v.interval() for v in values]
    errors = [
        [max(0.0, mean - low) for mean, (low, _) in zip(means, ends, strict=True)],
        [max(0.0, high - mean) for mean, (_, high) in zip(means, ends, strict=True)],
    ]
    colours = {"ours": "#b35806", "rival": "#998ec3"}
    figure, axis = pyplot.subplots(figsize=(7, 0.6 + 0.22 * len(rows)))
    axis.barh([row.label for row in rows], means, xerr=errors, ecolor="#444", capsize=2,
              color=[colours.get(row.kind, "#d8daeb") for row in rows])  # fmt: skip
    axis.set_xlim(0, 1)
    axis.set_xlabel("harmonic mean of the subject rate and the style rate")
    axis.tick_params(labelsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def write(text: str, path: Path) -> None:
    """Write a document; what was written by hand below its mark stays."""
    kept = path.read_text(encoding="utf-8").partition(MARK)[2] if path.exists() else ""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n{MARK}{kept or chr(10)}", encoding="utf-8")


def write_all(q: Quality, columns: dict[str, Tensor], docs: Path, suffix: str = "") -> Path:
    """The document, its plot and its contact sheet. Returns the document's path. suffix: of all their names."""
    name = f"quality{suffix}"
    document_path = docs / "benchmarks" / f"{name}.md"
    plot(q, docs / "images" / f"{name}.png")
    contact_sheet(columns, docs / "images" / f"{name}_sheet.jpg", scale=1)
    write(document(q, f"../images/{name}"), document_path)
    return document_path
