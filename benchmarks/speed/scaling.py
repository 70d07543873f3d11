"""How the cost grows with rank, pictures a batch, and LoRAs: launches a layer do not, bytes do."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from repo_paths import REPO

from .counting import RANK, Cost, Variants
from .models import SHAPES

PLOT = REPO / "docs" / "images" / "speed_scaling.png"
MODEL = "SD1.5"
COUNTED = ("recommended", "kl_soft", "paper")
FLOOR = "added as they are"


@dataclass(frozen=True)
class Axis:
    """What is varied. points: what a point is called, and the arguments of its ``Variants``."""

    title: str
    points: dict[str, dict[str, Any]] = field(default_factory=dict)


AXES = (
    Axis("rank of both", {str(rank): {"subject": (rank,), "style": (rank,)} for rank in (4, 16, 64, 128)}),
    Axis(
        "ranks, subject/style",
        {
            f"{subject}/{style}": {"subject": (subject,), "style": (style,)}
            for subject, style in ((16, 16), (16, 32), (32, 16), (16, 48), (16, 64))
        },
    ),
    Axis("pictures a batch", {str(batch): {"batch": batch} for batch in (1, 2, 4)}),
    Axis(
        "LoRAs, subject + style",
        {
            f"{subject} + {style}": {"subject": (RANK,) * subject, "style": (RANK,) * style}
            for subject, style in ((1, 1), (2, 1), (2, 2), (3, 3))
        },
    ),
)
Row = dict[str, Cost]


def counted(axis: Axis) -> dict[str, Row]:
    """By point, the costs of every policy and of adding without deciding."""
    import torch

    from lora_conductor.fusion.routing import NAMED

    rows: dict[str, Row] = {}
    for name, arguments in axis.points.items():
        with tempfile.TemporaryDirectory() as folder:
            variants = Variants(SHAPES[MODEL], torch.float32, Path(folder), **arguments)
            rows[name] = {policy: variants.cost(NAMED[policy]) for policy in COUNTED} | {FLOOR: variants.floor()}
    return rows


def table(plot: Path = PLOT) -> Iterator[str]:
    """As a page shows it; the picture is written beside."""
    yield (
        f"The {MODEL} shape; launches a routed layer and call / MB moved a step, more than merged. *{FLOOR}* is the "
        "floor: both LoRAs added while sampling, with nothing measured, decided or weighted. Where the roles' ranks "
        "differ by up to a factor of three, as with 2 + 1 LoRAs, the narrower role's factors are filled up with zeros; "
        "where they differ by more, that would be as large as the files, and each role is measured for itself: about "
        "three launches more.\n"
    )
    found = {axis.title: counted(axis) for axis in AXES}
    for title, rows in found.items():
        yield f"| {title} | {' | '.join((*COUNTED, FLOOR))} |"
        yield "|---" * (len(COUNTED) + 2) + "|"
        for name, row in rows.items():
            costs = (row[kind] for kind in (*COUNTED, FLOOR))
            cells = (f"{cost.launches:.2f} / {cost.bytes / 1e6:.0f}" for cost in costs)
            yield f"| {name} | {' | '.join(cells)} |"
        yield ""
    _plot(found, plot)
    yield f"![Launches a layer, and MB a step, by rank, batch and number of LoRAs](../images/{plot.name})"


def _plot(found: dict[str, dict[str, Row]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(found), figsize=(12, 5), sharex="col", squeeze=False)
    for column, (title, rows) in enumerate(found.items()):
        for kind in (*COUNTED, FLOOR):
            look = {"color": "black", "linestyle": ":"} if kind == FLOOR else {"marker": "o", "markersize": 3}
            axes[0][column].plot(list(rows), [row[kind].launches for row in rows.values()], label=kind, **look)
            axes[1][column].plot(list(rows), [row[kind].bytes / 1e6 for row in rows.values()], **look)
        axes[0][column].set_ylim(0, 28)
        axes[1][column].set_ylim(bottom=0)
        axes[1][column].set_xlabel(title)
    axes[0][0].set_ylabel("launches a layer and call")
    axes[1][0].set_ylabel("MB a step")
    axes[0][-1].legend(frameon=False, fontsize=8, loc="upper right")
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=90)
    pyplot.close(figure)
