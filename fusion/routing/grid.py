"""Where tokens lie in the picture, and smoothing over it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

PATCHES = (1, 2, 4, 8, 16, 32)


def grid_of(tokens: int, latent: Sequence[int]) -> tuple[int, int] | None:
    """Height and width of the token grid of a latent ``(..., height, width)``, cut into square patches.

    Tokens of all frames of a video are a multiple of the grid. None where no patch size gives the number of tokens.
    """
    if len(latent) < 2:
        return None
    for patch in PATCHES:
        height, width = (math.ceil(n / patch) for n in latent[-2:])
        frames, rest = divmod(tokens, height * width)
        if height * width > 1 and rest == 0 and 0 < frames <= math.prod(latent[:-2]):
            return height, width
    return None


def blurred(values: Tensor, radius: float, grid: tuple[int, int] | None) -> Tensor:
    """Values of tokens, each averaged with its neighbours.

    Args:
        values: ``[batch, tokens]``.
        radius: standard deviation of the Gaussian, in tokens; 0 leaves the values alone.
        grid: height and width; without it, neighbours are those in the sequence.
    """
    if radius <= 0:
        return values
    reach = max(1, math.ceil(2 * radius))
    at = torch.arange(-reach, reach + 1, device=values.device, dtype=values.dtype)
    kernel = torch.exp(-0.5 * (at / radius) ** 2)
    if grid is None:
        return _convolved(values[:, None], kernel, -1)[:, 0]
    picture = values.reshape(-1, 1, *grid)
    return _convolved(_convolved(picture, kernel, -1), kernel, -2).reshape(values.shape)


def _convolved(values: Tensor, kernel: Tensor, dim: int) -> Tensor:
    """Mean along one dimension by the kernel; at the border over what there is."""
    shape = [1] * values.ndim
    shape[dim] = len(kernel)
    pads = [0, 0] * (-dim - 1) + [len(kernel) // 2] * 2
    conv = F.conv1d if values.ndim == 3 else F.conv2d
    weights = kernel.reshape(shape)
    norm = conv(F.pad(torch.ones_like(values[:1]), pads), weights)
    return conv(F.pad(values, pads), weights) / norm
