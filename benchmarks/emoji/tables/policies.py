"""Lines for the console: the judge's figures of a method, and methods against the first."""

from __future__ import annotations

from ..judging.evaluation import Result
from ..judging.verdicts import between, harmonic, replicates

HEADER = f"{'method':44} subject  style   both | both_p subj_p styl_p | both by style | s/picture"


def row(label: str, result: Result, styles: int) -> str:
    """A method's line; its pairs are of so many styles."""
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
