"""Pictures in labelled columns."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw
from torch import Tensor


def contact_sheet(columns: dict[str, Tensor], path: Path, scale: int = 2) -> None:
    """Save pictures as a PNG: one labelled column each, [rows, 3, 64, 64] in [0, 1]; missing rows stay white.

    scale: enlargement, without smoothing.
    """
    side, gap, head = 64 * scale, 4, 26
    rows = max(len(pictures) for pictures in columns.values())
    sheet = Image.new("RGB", (len(columns) * (side + gap) + gap, head + rows * (side + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for c, (label, pictures) in enumerate(columns.items()):
        left = gap + c * (side + gap)
        draw.text((left, 2), label.replace(" ", "\n", 1), fill="black", font_size=10)
        for r, picture in enumerate(pictures):
            array = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
            tile = Image.fromarray(array).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(tile, (left, head + r * (side + gap)))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, quality=60, optimize=True)  # of JPEGs
