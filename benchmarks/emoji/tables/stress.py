"""The page of files as people make them: its arrangements, its methods, and what it says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..judging.verdicts import Verdicts, difference
from ..methods.runs import Entry, Pair
from . import quality_rows

RECOMMENDED = quality_rows.RECOMMENDED


@dataclass(frozen=True)
class Arrangement:
    """How files are made, and what is done to the model below them.

    Attributes:
        label: in the table.
        folders: of `world.stress`, whose files take the place of the shipped ones.
        changed: what stands before a method's text, as in `methods.policies`.
        accelerated: whether the accelerating LoRA is merged into the model, which is then sampled at CFG 1.
    """

    label: str
    folders: tuple[str, ...] = ()
    changed: str = ""
    accelerated: bool = False

    def entries(self) -> list[Entry]:
        """The methods, on these files."""
        cfg = 1.0 if self.accelerated else None
        methods = [Entry(RECOMMENDED, RECOMMENDED, kind="ours"), *STACKS]
        if self.accelerated:
            methods = [each for each in methods if each.kind == "ours" or each.method.startswith("core:")]
            methods.insert(1, Entry(f"{RECOMMENDED} at 1.5/1.5", f"1.5/1.5:{RECOMMENDED}", kind="ours"))
        return [Entry(each.label, f"{self.changed}{each.method}", cfg, kind=each.kind) for each in methods]


STACKS = (
    quality_rows.stacked(1, 1),
    *quality_rows.TUNED,
    quality_rows.stacked(0.7, 1.3),
    Entry("craft", "craft"),
)
"""Plainly stacked, at the strengths that were best on the tune pairs, in both passes and on the positive prompt alone,
the latter's in both passes, and the published method that comes nearest."""
ARRANGEMENTS = (
    Arrangement("as shipped"),
    Arrangement("subject overtrained", ("overtrained/subject",)),
    Arrangement("style overtrained", ("overtrained/style",)),
    Arrangement("both overtrained", ("overtrained",)),
    Arrangement("leaky style", ("leaky",)),
    Arrangement("subject of rank 32", ("wide/subject",)),
    Arrangement("style of rank 32", ("wide/style",)),
    Arrangement("both of rank 32", ("wide",)),
    Arrangement("attention alone", ("attention",), changed="layers attention/attention:"),
    Arrangement("uneven alphas", changed="alpha 4/4:"),
    Arrangement("third in the stack", changed="below 1:"),
    Arrangement("accelerated, CFG 1", accelerated=True),
)
ABOUT = """\
What people bring is rarely trained as carefully as the small world's own files
([benchmarks/emoji](../../benchmarks/emoji/README.md)). *overtrained*: four times the steps. *leaky style*: a style from
eight pictures of one kind (animals and nature), so that it learns their subjects, too. *rank 32*: in place of 8.
*attention alone*: queries, keys, values and outputs of attention. *uneven alphas*: both files' layers times 1/4 to 4 by
chance. *third in the stack*: another subject's file at strength 1 below both, put there by ComfyUI's own loader.
*accelerated*: a LoRA of rank 32 below both that makes guidance superfluous, as Hyper, Lightning and Turbo files do
(`world/stress.py`); there no negative pass is left, and *positive only* is the same as stacking. Stacking's strengths
are those that are best on the tune pairs. A judge that no method can see looks at the pictures, as in
[quality.md](quality.md). One tiny FLUX; it shows what happens there."""


def _labels() -> list[str]:
    """Of all methods, whichever arrangements are shown."""
    return list(dict.fromkeys(entry.label for arrangement in ARRANGEMENTS for entry in arrangement.entries()))


def table(found: Mapping[str, Mapping[str, Verdicts]]) -> list[str]:
    """An arrangement a row: harmonic means by method, and how far the default is above the best of the others."""
    labels = _labels()
    lines = [
        f"| files | {' | '.join(f'`{label}`' for label in labels)} | lead over the best other |",
        "|---" * (len(labels) + 2) + "|",
    ]
    for name, verdicts in found.items():
        cells = [f"{verdicts[label].hmean:.2f}" if label in verdicts else "" for label in labels]
        others = [label for label in verdicts if not label.startswith(RECOMMENDED)]
        best = max(others, key=lambda label: verdicts[label].hmean)
        lead, (low, high) = difference(verdicts[RECOMMENDED], verdicts[best])
        lines.append(f"| {name} | {' | '.join(cells)} | {lead:+.2f} ({low:+.2f} to {high:+.2f}) `{best}` |")
    return lines


def rates(found: Mapping[str, Mapping[str, Verdicts]]) -> list[str]:
    """Subject / style / both, and the judge's mean probability of both."""
    labels = _labels()
    lines = [f"| files | {' | '.join(f'`{label}`' for label in labels)} |", "|---" * (len(labels) + 1) + "|"]
    for name, verdicts in found.items():
        cells = []
        for label in labels:
            v = verdicts.get(label)
            said = "" if v is None else " / ".join(f"{v.rate(kind):.2f}" for kind in ("subject", "style", "both"))
            cells.append(said if v is None else f"{said}, {v.rate('p'):.3f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def document(
    found: Mapping[str, Mapping[str, Verdicts]],
    command: str,
    sampling: str,
    pairs: Sequence[Pair],
    seeds: Sequence[int],
    sheet: str,
) -> str:
    """The Markdown. found: verdicts by arrangement and method; sheet: path of the pictures."""
    subjects, styles = (", ".join(dict.fromkeys(names)) for names in zip(*pairs, strict=True))
    parts = [
        "# Files as people make them",
        f"```\n{command}\n```",
        ABOUT,
        f"Split *test*: {subjects}, each in {styles}: {len(pairs)} pairs, seeds {seeds[0]} to {seeds[-1]}, "
        f"{len(pairs) * len(seeds)} pictures a cell; {sampling} where nothing else is said. Harmonic means of the "
        "subject rate and the style rate; leads with their 95 % interval over pairs, over whichever other method did "
        "best there, which is chosen with the result in sight.",
        "\n".join(table(found)),
        "Subject / style / both right, and the judge's mean probability of both:",
        "\n".join(rates(found)),
        "## Pictures",
        f"![A pair a row, first seed, the default and stacking by files]({sheet})",
        "A pair a row, in the order above, first seed: *ours* is the default, *stacked* is stacking 1/1; the number is "
        "that of the table's row.",
    ]
    return "\n\n".join(parts) + "\n"
