"""Styles that no emoji set has: each is a fixed rendering of noto's drawing, so every subject has its true picture.

A rendering takes a picture [3, H, W] in [0, 1] on white and gives one of the same shape on white: the world's model has
never seen another ground, and with one no method keeps a subject. They differ in what else a style can change: palette,
line, shading, detail.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

SOURCE = "noto"
LUMA = torch.tensor([0.299, 0.587, 0.114])
Rendering = Callable[[Tensor], Tensor]


def colour(code: str) -> Tensor:
    """[3, 1, 1] in [0, 1] of a colour as in HTML, #rrggbb."""
    return torch.tensor([int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)])[:, None, None]


def grey(picture: Tensor) -> Tensor:
    """Luminance [1, H, W]."""
    return (picture * LUMA[:, None, None]).sum(dim=0, keepdim=True)


def lines(picture: Tensor) -> Tensor:
    """How much of an edge goes through each pixel [1, H, W], 0 to 1: the steepest channel's Sobel gradient."""
    kernel = torch.tensor([[1.0, 2.0, 1.0], [0.0, 0.0, 0.0], [-1.0, -2.0, -1.0]]) / 4
    padded = functional.pad(picture[:, None], (1, 1, 1, 1), mode="replicate")
    down, across = (functional.conv2d(padded, k[None, None]) for k in (kernel, kernel.T.contiguous()))
    steepest = (down**2 + across**2).sqrt().amax(dim=0)
    return (steepest * 2.2 - 0.25).clamp(0, 1)


def covered(picture: Tensor) -> Tensor:
    """Where the subject is [1, H, W], 0 to 1; its white parts count as the white ground."""
    return ((1 - picture).amax(dim=0, keepdim=True) * 6).clamp(0, 1)


def between(dark: str, light: str, tone: Tensor) -> Tensor:
    """From one colour at tone 0 to another at 1, [3, H, W]."""
    return colour(dark) + (colour(light) - colour(dark)) * tone


def ballpoint(picture: Tensor) -> Tensor:
    """Blue lines, nothing filled."""
    return between("#ffffff", "#1f3fae", lines(picture))


def duotone(picture: Tensor) -> Tensor:
    """Dark purple to yellow by luminance."""
    return 1 - covered(picture) * (1 - between("#3b0f6e", "#ffd447", grey(picture)))


def rotated(picture: Tensor) -> Tensor:
    """Red for green, green for blue, blue for red."""
    return picture[[1, 2, 0]]


def sepia(picture: Tensor) -> Tensor:
    """An ink wash: three brown tones and a thin line."""
    tone = ((1 - grey(picture)) * 3).round() / 3
    return between("#ffffff", "#4a2c14", torch.maximum(tone * 0.75, lines(picture)))


def crayon(picture: Tensor) -> Tensor:
    """Broad lines of the drawing's own colours, nothing filled."""
    vivid = (picture - picture.amax(dim=0, keepdim=True) + 1).clamp(0, 1)
    near = 1 - functional.max_pool2d((1 - vivid)[None], 3, 1, 1)[0]
    broad = functional.avg_pool2d(functional.max_pool2d(lines(picture)[None], 3, 1, 1), 3, 1, 1)[0]
    return 1 - broad * (1 - 0.85 * near)


def stencil(picture: Tensor) -> Tensor:
    """One teal for the whole subject, its inner lines left white."""
    deep = functional.avg_pool2d(covered(picture)[None], 5, 1, 2)[0] ** 4  # not the outer line
    inside = covered(picture) * (1 - 0.9 * lines(picture) * deep)
    return between("#ffffff", "#0f7d78", inside)


RENDERED: dict[str, Rendering] = {f.__name__: f for f in (duotone, rotated, ballpoint, sepia, crayon, stencil)}
