"""The rows of the quality table: every policy of KL Layer Router, plain stacking, and ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..judging.verdicts import Verdicts
from ..methods.runs import Entry

RECOMMENDED, STACKED = "recommended", "stacked 1/1"
GRID = ((1.0, 1.0), (0.7, 1.3), (1.0, 1.3), (1.0, 1.5), (1.0, 1.75), (1.0, 2.0), (0.7, 1.7), (1.3, 1.5), (1.3, 2.0))
"""Strengths (subject, style) among which stacking is tuned, on the tune pairs."""
FAINT = ((0.4, 0.6), (0.35, 0.7), (0.5, 0.7), (0.5, 0.9))
"""Beside them on the positive prompt alone where guidance is strong, which multiplies what LoRAs do there."""
STRONG = 4.0
"""From which CFG on."""
LOUD = ("2/1", "1/2")
"""Files, subject/style, of which one is twice as loud."""
QUICK = (STACKED, RECOMMENDED, "paper", "k_lora", "np_lora")


CURES = (
    Entry("recommended, APG", f"apg 0/0:{RECOMMENDED}", cfg=1.5, kind="ablation"),
    Entry("recommended, half APG", f"apg .5/0:{RECOMMENDED}", kind="ablation"),
)
"""Of burn; not kept (lab notes, section 27), so they are in no table unless they are asked for."""


def stacked(subject: float, style: float) -> Entry:
    """Core's two loaders in a row."""
    return Entry(f"stacked {subject:g}/{style:g}", f"core:{subject:g}/{style:g}")


def positive(subject: float, style: float) -> Entry:
    """Both LoRAs as they are, on the positive prompt alone: what core's hooks do, and CRAFT without its windows."""
    method = f"{subject:g}/{style:g}:craft(subject_until=2,style_from=0)"
    return Entry(f"stacked {subject:g}/{style:g}, positive only", method)


WAYS = (stacked, positive)
"""Of stacking that are tuned."""
TUNED = (stacked(1.3, 2.0), positive(0.7, 1.3))
"""The best of each: used where the tune subjects' LoRAs are not at hand."""


def grid(cfg: float) -> list[list[Entry]]:
    """Every way of stacking at every strength that is tried. At CFG 1 there is no negative prompt, and one way."""
    grids = [[way(*strengths) for strengths in GRID] for way in WAYS[: 2 if cfg > 1 else 1]]
    if cfg >= STRONG:
        grids[1] += [positive(*strengths) for strengths in FAINT]
    return grids


def best(grids: Sequence[Sequence[Entry]], verdicts: Mapping[str, Verdicts]) -> tuple[Entry, ...]:
    """Of every way the one with the highest harmonic mean, by their labels' verdicts."""
    return tuple(max(rows, key=lambda row: verdicts[row.label].hmean) for rows in grids)


def headline(tuned: Sequence[Entry], guided: bool) -> list[Entry]:
    """The rows of the first table. The policy that ``recommended`` is, under its own name, is left out.

    Args:
        tuned: stacking at its best strengths.
        guided: whether metric guidance can be had.
    """
    from lora_conductor.fusion.policies import POLICIES, SSRMerge
    from lora_conductor.fusion.policies import RECOMMENDED as OURS

    published = [name for name, policy in POLICIES.items() if policy() != OURS]
    rows = [
        Entry(RECOMMENDED, RECOMMENDED, kind="ours"),
        stacked(1, 1),
        positive(1, 1),
        *tuned,
        *(Entry(name, name) for name in (*published, SSRMerge.name)),
        Entry("recommended, emphasis 1", "recommended(emphasis=1)", kind="ablation"),
        Entry("k_lora, variant s", "k_lora(variant=s)"),
        Entry("k_lora, variant s, attention only", "k_lora_on_attention(variant=s)"),
    ]
    if guided:
        rows.insert(1, Entry("recommended + guidance", RECOMMENDED, guidance="x0", kind="ours"))
    return list({row.label: row for row in rows}.values())


def some(labels: Sequence[str]) -> list[Entry]:
    """The default and the rows of these labels. Raises ValueError for one that is none."""
    rows = [*headline(TUNED, guided=False), *CURES]
    if unknown := set(labels) - {row.label for row in rows}:
        raise ValueError(f"no row {', '.join(sorted(unknown))}: there are {', '.join(row.label for row in rows)}")
    return [row for row in rows if row.label in (RECOMMENDED, *labels)]


def quick() -> list[Entry]:
    """A few rows, none of which needs more than the shipped files."""
    named = (*QUICK, *(row.label for row in TUNED))
    return [row for row in headline(TUNED, guided=False) if row.label in named]


def doubled(tuned: Sequence[Entry]) -> list[tuple[str, Sequence[Entry]]]:
    """(method, its rows as it is, with the subject's and with the style's file twice as loud)."""
    methods = [Entry(RECOMMENDED, RECOMMENDED, kind="ours"), stacked(1, 1), *tuned]
    return [
        (
            row.label,
            [row, *(Entry(f"{row.label}, loud {s}", f"loud {s}:{row.method}", kind="imbalance") for s in LOUD)],
        )
        for row in {row.label: row for row in methods}.values()
    ]
