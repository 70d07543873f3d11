"""The sheet of a measured pair: seeds down, anchors and the fused picture across, figures under each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...fusion.roles import ROLES
from .drawing import GAP, INK, MOST_SAID, as_image, drawn, in_lines, widest
from .pair import KINDS, MEASURED, MeasuredPair
from .pair_words import HEADS, axis_of, burn_of_pair

LEAST, MOST = 208, 512  # pixels of a picture's longer side
TOP, CAPTION, FONT_SIZE = 32, 46, 15


def pair_sheet(pair: MeasuredPair, verdict: Sequence[str]) -> Tensor:
    """The sheet as an image ``[1, height, width, 3]`` between 0 and 1."""
    height, width = next(shot.image.shape[:2] for shot in pair.shots.values() if not shot.error)
    scale = min(MOST, max(LEAST, height, width)) / max(height, width)
    width, height = round(width * scale), round(height * scale)
    font = ImageFont.load_default(FONT_SIZE)
    rows = [f"seed {seed}" for seed in pair.seeds]
    left = 2 * GAP + widest([*rows, "mean"], font)
    across, down = max(width, LEAST) + GAP, height + CAPTION
    full = left + across * len(KINDS)
    words = "\n".join(in_lines(line, font, full - 2 * GAP) for line in verdict)
    below = TOP + down * len(rows)
    page = Image.new("RGB", (full, below + CAPTION + (words.count("\n") + 2) * (FONT_SIZE + 5)), "white")
    draw = ImageDraw.Draw(page)
    for row, seed in enumerate(pair.seeds):
        draw.text((GAP, TOP + row * down + height / 2), rows[row], INK, font)
        for column, kind in enumerate(KINDS):
            x, y = left + column * across, TOP + row * down
            shot = pair.shots[kind, seed]
            if shot.error:
                draw.rectangle((x, y, x + width - 1, y + height - 1), outline=INK)
                draw.multiline_text(
                    (x + GAP, y + GAP), in_lines(shot.error[:MOST_SAID], font, width - 2 * GAP), INK, font
                )
                continue
            page.paste(drawn(shot.image).resize((width, height), Image.Resampling.LANCZOS), (x, y))
            draw.multiline_text((x, y + height + 2), _of_seed(pair, kind, seed), INK, font)
    draw.text((GAP, below + 2), "mean", INK, font)
    for column, (kind, head) in enumerate(HEADS.items()):
        draw.text((left + column * across, 7), head, INK, font)
        draw.multiline_text((left + column * across, below + 2), _of_all(pair, kind), INK, font)
    draw.multiline_text((GAP, below + CAPTION), words, INK, font, spacing=5)
    return as_image(page)


def pair_pictures(pair: MeasuredPair) -> Tensor:
    """All pictures ``[N, height, width, 3]``, seed by seed in the order of :data:`KINDS`; grey where there is none."""
    shape = next(shot.image.shape for shot in pair.shots.values() if not shot.error)
    found = [pair.shots[kind, seed] for seed in pair.seeds for kind in KINDS]
    return torch.stack([torch.full(shape, 0.5) if shot.error else shot.image for shot in found])


def _of_seed(pair: MeasuredPair, kind: str, seed: int) -> str:
    if seed not in pair.whole or kind == "base":
        return ""
    index = pair.whole.index(seed)
    ways = {role: pair.axes[role][kind][index] for role in ROLES if role in pair.axes}
    likeness = "  ".join(f"{role} {'-' if way is None else f'{way:.0%}'}" for role, way in ways.items())
    return f"{likeness}\n{_heat({name: values[index] for name, values in pair.burn.get(kind, {}).items()})}".strip()


def _of_all(pair: MeasuredPair, kind: str) -> str:
    if kind == "base" or not pair.whole:
        return ""
    ways = {role: axis_of(pair, role, kind) for role in ROLES if role in pair.axes}
    likeness = "  ".join(f"{role} {'-' if way is None else f'{way.mean:.0%}'}" for role, way in ways.items())
    return f"{likeness}\n{_heat({name: value.mean for name, value in burn_of_pair(pair, kind).items()})}".strip()


def _heat(burn: dict[str, float]) -> str:
    """Against the style alone, of pictures that are measured against it."""
    return f"edges x{burn['gradient']:.2f}  chroma x{burn['chroma']:.2f}" if burn else ""


assert list(HEADS) == list(KINDS) and set(MEASURED) < set(KINDS)
