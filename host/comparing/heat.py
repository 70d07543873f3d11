"""Burn of finished pictures as a table, against pictures of the same seeds by the style alone where there are any."""

from __future__ import annotations

from torch import Tensor

from ...guidance.burn import FIGURES, burn_of, ratios
from ..core import ConductorError
from ..vision import picture_of

# By figure, what people read.
NAMES = {
    "chroma": "chroma",
    "clipped": "clipped pixels",
    "contrast": "contrast",
    "gradient": "edges",
    "colourfulness": "colourfulness",
}
DIGITS = {"chroma": 1, "clipped": 3, "contrast": 3, "gradient": 4, "colourfulness": 1}


def burn_table(images: Tensor, anchors: Tensor | None) -> str:
    """Markdown, a row for each of IMAGE [N, H, W, 3].

    anchors: from the input ``style_alone``, one for all or one each; the table then has how many times theirs.

    Raises:
        ConductorError: another number or size of anchors.
    """
    figures = burn_of(images.movedim(-1, 1))
    if anchors is not None:
        anchors = picture_of("style_alone", anchors).images
        if len(anchors) not in (1, len(images)) or anchors.shape[1:3] != images.shape[1:3]:
            raise ConductorError(
                f"style_alone: {len(anchors)} pictures of {_size(anchors)} cannot be held against {len(images)} of "
                f"{_size(images)}. Connect the same seeds at the same size, or one picture for all."
            )
        figures = ratios(figures, burn_of(anchors.movedim(-1, 1)))
    heads = [NAMES[figure] if anchors is None else f"{NAMES[figure]} (times style_alone)" for figure in FIGURES]
    lines = [f"| picture | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for index in range(len(images)):
        lines.append(
            f"| {index + 1} | {_cells({name: float(values[index]) for name, values in figures.items()}, anchors)} |"
        )
    if len(images) > 1:
        lines.append(f"| mean | {_cells({name: float(values.mean()) for name, values in figures.items()}, anchors)} |")
    return "\n".join(lines)


def _cells(values: dict[str, float], anchors: Tensor | None) -> str:
    return " | ".join(f"{value:.{DIGITS[figure] if anchors is None else 2}f}" for figure, value in values.items())


def _size(images: Tensor) -> str:
    return f"{images.shape[2]} x {images.shape[1]}"
