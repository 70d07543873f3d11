"""The demo's two pictures: a labelled comparison, and the routing map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

CELL, GAP, MARGIN, HEAD, SIDE = 144, 10, 18, 62, 132
INK, MUTED, LINE, ACCENT = "#1b1f24", "#656d76", "#d8dee4", "#0a5c8f"


def comparison(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> Image.Image:
    """One row a pair and seed: the two references, a picture per column, the truth. Ours stand on a tinted ground."""
    from matplotlib import font_manager

    regular = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 14)
    bold = ImageFont.truetype(font_manager.findfont("DejaVu Sans:bold"), 14)
    small = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 12)
    heads = ["this subject ...", "... in that style", *columns, "the true picture"]
    # References | what was made | truth: a wider gap between the three.
    gaps = [0 if i < 2 else 2 * GAP if i < len(heads) - 1 else 4 * GAP for i in range(len(heads))]
    lefts = [MARGIN + SIDE + i * (CELL + GAP) + gap for i, gap in enumerate(gaps)]
    width = lefts[-1] + CELL + MARGIN
    height = HEAD + len(rows) * (CELL + GAP) + MARGIN
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    ours = [i for i, name in enumerate(heads) if name.startswith("recommended")]
    draw.rounded_rectangle(
        (lefts[ours[0]] - GAP // 2, 8, lefts[ours[-1]] + CELL + GAP // 2, height - 8), 8, fill="#e8f3fb"
    )
    for i, head in enumerate(heads):
        lines = _wrap(head, bold if i in ours else regular, CELL)
        top = HEAD - 10 - 18 * len(lines)
        for n, line in enumerate(lines):
            draw.text(
                (lefts[i] + CELL / 2, top + 18 * n),
                line,
                fill=ACCENT if i in ours else INK,
                font=bold if i in ours else regular,
                anchor="ma",
            )
    for r, row in enumerate(rows):
        top = HEAD + r * (CELL + GAP)
        for n, (text, color) in enumerate(
            ((row["subject"], INK), (f"in {_short(row['style'])}", INK), (f"seed {row['seed']}", MUTED))
        ):
            draw.text((MARGIN, top + CELL / 2 - 30 + 20 * n), text, fill=color, font=bold if n == 0 else small)
        for left, picture in zip(lefts, [*row["references"], *row["pictures"], row["truth"]], strict=True):
            sheet.paste(picture.convert("RGB").resize((CELL, CELL), Image.Resampling.LANCZOS), (left, top))
            draw.rectangle((left - 1, top - 1, left + CELL, top + CELL), outline=LINE)
    return sheet


def _short(style: str) -> str:
    return style.removeprefix("fluent-emoji-")


def _wrap(text: str, font: Any, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def routing_map(records: dict[str, dict[str, Any]], path: Path, title: str) -> None:
    """Layers down, steps across; colour is the subject's share of the two weights. One panel a record."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    figure, axes = plt.subplots(
        1, len(records), figsize=(1.4 + 4.6 * len(records), 9), sharey=True, layout="constrained"
    )
    image = None
    for axis, (name, record) in zip(np.atleast_1d(axes), records.items(), strict=True):
        weights = np.array(record["weights"], dtype=float)
        share = weights[0] / np.maximum(weights.sum(0), 1e-9)
        # Blue to orange through light grey: told apart by colour-blind readers too, and by brightness at the middle.
        colours = matplotlib.colors.LinearSegmentedColormap.from_list("roles", ["#d55e00", "#f2f2f2", "#0072b2"])
        image = axis.imshow(
            share, aspect="auto", vmin=0, vmax=1, cmap=colours.with_extremes(bad="white"), interpolation="nearest"
        )
        axis.set_title(name)
        axis.set_xlabel("sampling step")
        axis.set_yticks(range(len(record["layers"])), [_layer(n) for n in record["layers"]], fontsize=7)
    bar = figure.colorbar(image, ax=axes, shrink=0.5, ticks=[0, 0.5, 1])
    bar.ax.set_yticklabels(["style", "even", "subject"])
    figure.suptitle(f"Which LoRA draws in which layer, step by step: {title}")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _layer(name: str) -> str:
    return name.removeprefix("diffusion_model.").replace("_blocks.", " ")
