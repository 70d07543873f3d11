"""A labelled grid of pictures, scores under each cell."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .drawing import GAP, INK, MOST_SAID, as_image, drawn, in_lines, widest
from .grid import Cell

LEAST, MOST = 192, 512  # pixels of a cell's longer side
LEFT, TOP, CAPTION = 130, 30, 44
GOOD = (200, 110, 0)
FONT_SIZE = 15


def comparison_picture(cells: Sequence[Cell], best: Cell) -> Tensor:
    """The grid as an image ``[1, height, width, 3]`` between 0 and 1; the best cell is framed."""
    rows = list(dict.fromkeys(cell.row.label for cell in cells))
    columns = list(dict.fromkeys(cell.column.label for cell in cells))
    height, width = best.image.shape[:2]
    scale = min(MOST, max(LEAST, height, width)) / max(height, width)
    width, height = round(width * scale), round(height * scale)
    font = ImageFont.load_default(FONT_SIZE)
    left = max(LEFT, GAP + widest(rows, font) + GAP // 2)
    across, down = max(width, widest(columns, font)) + GAP, height + CAPTION
    page = Image.new("RGB", (left + across * len(columns), TOP + down * len(rows)), "white")
    draw = ImageDraw.Draw(page)
    for i, label in enumerate(columns):
        draw.text((left + i * across, 6), label, INK, font)
    for i, label in enumerate(rows):
        draw.text((GAP, TOP + i * down + height / 2), label, INK, font)
    for cell in cells:
        x, y = left + columns.index(cell.column.label) * across, TOP + rows.index(cell.row.label) * down
        if cell.error:
            draw.rectangle((x, y, x + width - 1, y + height - 1), outline=INK)
            draw.multiline_text((x + GAP, y + GAP), in_lines(cell.error[:MOST_SAID], font, width - 2 * GAP), INK, font)
            continue
        page.paste(drawn(cell.image).resize((width, height), Image.Resampling.LANCZOS), (x, y))
        if cell is best:
            draw.rectangle((x, y, x + width - 1, y + height - 1), outline=GOOD, width=4)
        for row, line in enumerate(_captions(cell)):
            draw.text((x, y + height + 2 + row * (FONT_SIZE + 3)), line, GOOD if cell is best else INK, font)
    return as_image(page)


def _captions(cell: Cell) -> tuple[str, str]:
    scores = "  ".join(f"{role} {value:.3f}" for role, value in cell.scores.items())
    share = "fixed merge" if cell.share is None else f"subject's share {cell.share:.0%}"
    return (scores, share) if scores else (share, "")
