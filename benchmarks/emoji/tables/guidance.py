"""The table of metric guidance: the judge's figures, the guided similarities, the cost."""

from __future__ import annotations

COLUMNS = (
    "method", "subject", "style", "both", "p(both)", "gain in p(both)", "S_DINO_content", "S_CLIP_style", "time",
    "CPU time", "memory",
)  # fmt: skip
HEADER = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


def row(label: str, means: dict[str, float], gain: tuple[float, float], cost: tuple[float, float, float] | None) -> str:
    """A method's line.

    means: as of ``Result.means``, with the similarities. gain: of both_p over the first method's, and its standard
    error. cost: as of ``guidance_costs.costs``, if it was measured.
    """
    judged = " | ".join(f"{means[name]:.2f}" for name in ("subject_ok", "style_ok", "both"))
    seen = " | ".join(f"{means[name]:.3f}" for name in ("S_DINO_content", "S_CLIP_style"))
    probable = f"{means['both_p']:.3f} | {gain[0]:+.3f} +- {gain[1]:.3f}"
    spent = f"{cost[0]:.2f}x | {cost[1]:.2f}x | {cost[2]:+.0f} MB" if cost else "- | - | -"
    return f"| `{label}` | {judged} | {probable} | {seen} | {spent} |"
