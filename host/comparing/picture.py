"""A labelled grid of pictures, scores under each cell."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .grid import Cell

LEAST, MOST = 192, 512  # pixels of a cell's longer side
LEFT, TOP, CAPTION, GAP = 130, 30, 44, 8
INK, GOOD = (30, 30, 30), (200, 110, 0)
FONT_SIZE = 15
MOST_SAID = 200  # characters of an error


def comparison_picture(cells: Sequence[Cell], best: Cell) -> Tensor:
    """The grid as an image ``[1, height, width, 3]`` between 0 and 1; the best cell is framed."""
    rows = list(dict.fromkeys(cell.row.label for cell in cells))
    columns = list(dict.fromkeys(cell.column.label for cell in cells))
    height, width = best.image.shape[:2]
    scale = min(MOST, max(LEAST, height, width)) / max(height, width)
    width, height = round(width * scale), round(height * scale)
    font = ImageFont.load_default(FONT_SIZE)
    left = max(LEFT, GAP + _widest(rows, font) + GAP // 2)
    across, down = max(width, _widest(columns, font)) + GAP, height + CAPTION
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
            draw.multiline_text((x + GAP, y + GAP), _in_lines(cell.error, font, width - 2 * GAP), INK, font)
            continue
        pixels = (cell.image.clamp(0, 1) * 255).round().to(torch.uint8)
        picture = Image.frombytes("RGB", (pixels.shape[1], pixels.shape[0]), bytes(pixels.flatten().tolist()))
        page.paste(picture.resize((width, height), Image.Resampling.LANCZOS), (x, y))
        if cell is best:
            draw.rectangle((x, y, x + width - 1, y + height - 1), outline=GOOD, width=4)
        for row, line in enumerate(_captions(cell)):
            draw.text((x, y + height + 2 + row * (FONT_SIZE + 3)), line, GOOD if cell is best else INK, font)
    pixels = torch.frombuffer(bytearray(page.tobytes()), dtype=torch.uint8).reshape(1, page.height, page.width, 3)
    return pixels.float() / 255


def _widest(labels: Sequence[str], font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    return math.ceil(max(font.getlength(label) for label in labels))


def _in_lines(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """The beginning of a text, in lines that fit."""
    lines = [""]
    for word in text[:MOST_SAID].split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)


def _captions(cell: Cell) -> tuple[str, str]:
    scores = "  ".join(f"{role} {value:.3f}" for role, value in cell.scores.items())
    share = "fixed merge" if cell.share is None else f"subject's share {cell.share:.0%}"
    return (scores, share) if scores else (share, "")
