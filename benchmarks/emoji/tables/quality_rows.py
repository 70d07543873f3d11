"""The rows of the quality table: every policy of KL Layer Router, plain stacking, and ours."""

from __future__ import annotations

from collections.abc import Sequence

from ..judging.verdicts import Verdicts
from ..methods.runs import Entry

RECOMMENDED, STACKED = "recommended", "stacked 1/1"
GRID = ((1.0, 1.0), (0.7, 1.3), (1.0, 1.3), (1.0, 1.5), (1.0, 1.75), (1.0, 2.0), (0.7, 1.7), (1.3, 2.0))
"""Strengths (subject, style) among which plain stacking is tuned, on the tune pairs."""
TUNED = (1.0, 2.0)
"""The best of them: used where the tune subjects' LoRAs are not at hand."""
QUICK = (STACKED, RECOMMENDED, "paper", "k_lora", "np_lora")


def stacked(subject: float, style: float, kind: str = "rival") -> Entry:
    """Core's two loaders in a row."""
    return Entry(f"stacked {subject:g}/{style:g}", f"core:{subject:g}/{style:g}", kind=kind)


def grid() -> list[Entry]:
    """Plain stacking at every strength that is tried."""
    return [stacked(*strengths) for strengths in GRID]


def best(verdicts: dict[str, Verdicts]) -> tuple[float, float]:
    """The strengths of the grid with the highest harmonic mean, by their labels' verdicts."""
    return max(GRID, key=lambda strengths: verdicts[stacked(*strengths).label].hmean)


def headline(tuned: tuple[float, float], guided: bool) -> list[Entry]:
    """The rows of the first table. The policy that ``recommended`` is, under its own name, is left out.

    Args:
        tuned: strengths (subject, style) of the tuned stack.
        guided: whether metric guidance can be had.
    """
    from lora_conductor.fusion.policies import POLICIES, SSRMerge
    from lora_conductor.fusion.policies import RECOMMENDED as OURS

    published = [name for name, policy in POLICIES.items() if policy() != OURS]
    strengths = "/".join(f"{s:g}" for s in tuned)
    rows = [
        Entry(RECOMMENDED, RECOMMENDED, kind="ours"),
        stacked(1, 1),
        stacked(*tuned),
        *(Entry(name, name) for name in (*published, SSRMerge.name)),
        Entry("sum, emphasis 2.5", "sum(emphasis=2.5)", kind="ablation"),
        Entry(f"sum {strengths}, emphasis 2.5", f"{strengths}:sum(emphasis=2.5)", kind="ablation"),
    ]
    if guided:
        rows.insert(1, Entry("recommended + guidance", RECOMMENDED, guidance="x0", kind="ours"))
    return list({row.label: row for row in rows}.values())


def quick() -> list[Entry]:
    """A few rows, none of which needs more than the shipped files."""
    return [row for row in headline(TUNED, guided=False) if row.label in (*QUICK, stacked(*TUNED).label)]


def doubled(tuned: tuple[float, float]) -> list[tuple[str, Sequence[Entry]]]:
    """(what, its rows as it is, with the subject's and with the style's file twice as loud)."""
    ours = [Entry(f"recommended, loud {s}", f"loud {s}:recommended", kind="imbalance") for s in ("2/1", "1/2")]
    found = [(RECOMMENDED, [Entry(RECOMMENDED, RECOMMENDED, kind="ours"), *ours])]
    for subject, style in dict.fromkeys(((1.0, 1.0), tuned)):
        twice = [(2 * subject, style), (subject, 2 * style)]
        found.append(
            (
                stacked(subject, style).label,
                [stacked(subject, style), *(stacked(*strengths, kind="imbalance") for strengths in twice)],
            )
        )
    return found
