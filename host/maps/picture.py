"""The routing map as a picture: layers down, steps across, orange where the subject drew most, blue where the style."""

from __future__ import annotations

import re

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...fusion.records import RoutingRecord

SUBJECT, STYLE, EVEN, UNKNOWN = (242, 142, 28), (47, 127, 224), (150, 150, 150), (245, 245, 245)
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 960, 720, 190, 44, 60
INK = (30, 30, 30)
FONT_SIZE = 14


def routing_picture(record: RoutingRecord) -> Tensor:
    """The map as an image ``[1, height, width, 3]`` between 0 and 1; a note in its place if nothing was routed."""
    page = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(FONT_SIZE)
    share = record.subject_share()
    if share is None:
        draw.text((LEFT, HEIGHT // 2), f"{record.title}: nothing was routed", INK, font)
    else:
        title = f"{record.title}: {len(record.layers)} layers, {record.steps} steps, subject's share {share:.0%}"
        draw.text((LEFT, 14), title, INK, font)
        size = (WIDTH - LEFT - 20, HEIGHT - TOP - BOTTOM)
        page.paste(_cells(record).resize(size, Image.Resampling.NEAREST), (LEFT, TOP))
        _blocks(draw, font, record.layers, size[1])
        _legend(draw, font, record)
    pixels = torch.frombuffer(bytearray(page.tobytes()), dtype=torch.uint8).reshape(1, HEIGHT, WIDTH, 3)
    return pixels.float() / 255


def _cells(record: RoutingRecord) -> Image.Image:
    """One pixel a cell."""
    lean = 2 * record.contributions() - 1
    subject, style, even, unknown = (torch.tensor(c, dtype=torch.float64) for c in (SUBJECT, STYLE, EVEN, UNKNOWN))
    clear = lean.abs()[..., None] ** 0.6  # the eye should find a small lead, too
    winner = torch.where(lean[..., None] > 0, subject, style)
    colours = torch.where(lean.isnan()[..., None], unknown, even + clear * (winner - even))
    layers, steps, _ = colours.shape
    return Image.frombytes("RGB", (steps, layers), bytes(colours.round().to(torch.uint8).flatten().tolist()))


Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def block_of(layer: str) -> str:
    """Name of a layer's block: up to its first number (``blocks.3``, ``blocks.block3``), or its first part."""
    parts = layer.removeprefix("diffusion_model.").split(".")
    number = next((i for i, part in enumerate(parts) if re.fullmatch(r"(block)?\d+", part)), 0)
    return ".".join(parts[: number + 1])


def _blocks(draw: ImageDraw.ImageDraw, font: Font, layers: tuple[str, ...], height: int) -> None:
    """A line and a name for each block, as far as they find room."""
    free_from = 0.0
    for i, layer in enumerate(layers):
        if i and block_of(layer) == block_of(layers[i - 1]):
            continue
        y = TOP + i / len(layers) * height
        draw.line((LEFT - 6, y, LEFT, y), INK)
        if y >= free_from:
            draw.text((8, y), block_of(layer), INK, font)
            free_from = y + FONT_SIZE + 2


def _legend(draw: ImageDraw.ImageDraw, font: Font, record: RoutingRecord) -> None:
    draw.text((LEFT, HEIGHT - BOTTOM + 6), "step 1", INK, font)
    draw.text((WIDTH - 20, HEIGHT - BOTTOM + 6), f"{record.steps}", INK, font, anchor="ra")
    x = LEFT
    names = {
        role: ", ".join(str(lora["name"]) for lora in record.loras if lora["role"] == role)
        for role in ("subject", "style")
    }
    entries = ((SUBJECT, f"subject {names['subject']}"), (STYLE, f"style {names['style']}"), (EVEN, "even"))
    for colour, text in entries:
        draw.rectangle((x, HEIGHT - 28, x + 12, HEIGHT - 16), colour)
        draw.text((x + 18, HEIGHT - 30), text, INK, font)
        x += int(draw.textlength(text, font)) + 44
