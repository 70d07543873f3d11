"""What labelled sheets of pictures are drawn with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image, ImageFont
from torch import Tensor

GAP = 8
INK = (30, 30, 30)
MOST_SAID = 200  # characters of an error
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def drawn(image: Tensor) -> Image.Image:
    """A picture ``[height, width, 3]`` between 0 and 1, in 8 bit."""
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).contiguous()
    return Image.frombytes("RGB", (pixels.shape[1], pixels.shape[0]), pixels.numpy().tobytes())


def as_image(page: Image.Image) -> Tensor:
    """An IMAGE ``[1, height, width, 3]`` between 0 and 1."""
    pixels = torch.frombuffer(bytearray(page.tobytes()), dtype=torch.uint8).reshape(1, page.height, page.width, 3)
    return pixels.float() / 255


def widest(labels: Sequence[str], font: Font) -> int:
    """Width in pixels of the longest label."""
    return math.ceil(max(font.getlength(label) for label in labels))


def in_lines(text: str, font: Font, width: float) -> str:
    """A text in lines that fit."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)
