"""Where tokens lie in the picture, and smoothing over it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PATCHES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Place:
    """Which tokens of a layer are the picture, frame by frame and row by row; what is beside them is not.

    Attributes:
        start: the first.
        frames, height, width: of their grid.
    """

    start: int
    frames: int
    height: int
    width: int

    @property
    def tokens(self) -> int:
        return self.frames * self.height * self.width


@dataclass(frozen=True)
class Picture:
    """What one model call tells of its tokens.

    Attributes:
        latent: its size, ``(..., height, width)``.
        patch: frames, rows and columns of the latent in a token; None where the model has several sizes, or where that
            is not known.
        joined: what stands first where pictures and text are one sequence, "text" or "picture"; empty where they never
            are, or where that is not known.
        multiple: tokens of a picture in such a sequence are filled up to a multiple of so many.
        references: tokens of other pictures behind it.
        text: tokens of the prompt; 0 where that is not known.
    """

    latent: tuple[int, ...] = ()
    patch: tuple[int, int, int] | None = None
    joined: str = ""
    multiple: int = 1
    references: int = 0
    text: int = 0

    def place(self, tokens: int, space: Sequence[int] | None = None) -> Place | None:
        """Where so many tokens of a layer lie; None where there is no telling, as of those of a text.

        Args:
            tokens: of the layer.
            space: size of its output, if it is a convolution.
        """
        if space is not None:
            return Place(0, math.prod(space[:-2]), space[-2], space[-1]) if len(space) > 1 else Place(0, 1, 1, tokens)
        if len(self.latent) == 1:  # sound: all of the sequence, or what stands behind tokens of another kind
            length = self.latent[0]
            return Place(tokens - length, 1, 1, length) if tokens >= length and tokens != self.text else None
        if self.patch is None:
            grid = None if tokens == self.text else grid_of(tokens, self.latent)
            return None if grid is None else Place(0, tokens // math.prod(grid), *grid)
        if len(self.latent) < 2:
            return None
        sides = (1, *self.latent)[-3:]
        frames, height, width = (math.ceil(n / patch) for n, patch in zip(sides, self.patch, strict=True))
        own = frames * height * width
        if tokens == own:
            return Place(0, frames, height, width)
        filled = math.ceil(own / self.multiple) * self.multiple + self.references
        if tokens == self.text or tokens < own:
            return None
        if self.joined == "picture":
            return Place(0, frames, height, width)
        return Place(tokens - filled, frames, height, width) if self.joined == "text" and tokens >= filled else None


def grid_of(tokens: int, latent: Sequence[int]) -> tuple[int, int] | None:
    """Height and width of the token grid of a latent ``(..., height, width)``, cut into square patches.

    Tokens of all frames of a video are a multiple of the grid; of several patches that would fit, it is the one that
    leaves the frames as they are. None where no patch size gives the number of tokens.
    """
    if len(latent) < 2:
        return None
    fitting: dict[int, tuple[int, int]] = {}
    for patch in PATCHES:
        height, width = (math.ceil(n / patch) for n in latent[-2:])
        frames, rest = divmod(tokens, height * width)
        if height * width > 1 and rest == 0 and 0 < frames <= math.prod(latent[:-2]):
            fitting.setdefault(frames, (height, width))
    return fitting[max(fitting)] if fitting else None


def blurred(values: Tensor, radius: float, place: Place | None) -> Tensor:
    """Values of tokens, each of the picture averaged with its neighbours in the same frame.

    Args:
        values: ``[batch, tokens]``.
        radius: standard deviation of the Gaussian, in tokens; 0 leaves the values alone.
        place: which tokens are a picture. All others stay as they are.
    """
    if radius <= 0 or place is None:
        return values
    reach = max(1, math.ceil(2 * radius))
    at = torch.arange(-reach, reach + 1, device=values.device, dtype=values.dtype)
    kernel = torch.exp(-0.5 * (at / radius) ** 2)
    stop = place.start + place.tokens
    picture = values[:, place.start : stop].reshape(-1, 1, place.height, place.width)
    for dim in (-1, -2):
        if picture.shape[dim] > 1:
            picture = _convolved(picture, kernel, dim)
    within = picture.reshape(len(values), -1)
    if within.shape == values.shape:
        return within
    return torch.cat([values[:, : place.start], within, values[:, stop:]], dim=1)


def _convolved(values: Tensor, kernel: Tensor, dim: int) -> Tensor:
    """Mean along one dimension by the kernel; at the border over what there is."""
    shape = [1] * values.ndim
    shape[dim] = len(kernel)
    pads = [0, 0] * (-dim - 1) + [len(kernel) // 2] * 2
    weights = kernel.reshape(shape)
    norm = F.conv2d(F.pad(torch.ones_like(values[:1]), pads), weights)
    return F.conv2d(F.pad(values, pads), weights) / norm
