"""Random changes of pictures, for those that learn from them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def crop(images: Tensor, scale: tuple[float, float], flip: bool = True, size: int = 64) -> Tensor:
    """Random zoom, shift and mirroring per sample: images [B, 3, H, W] in [0, 1] -> [B, 3, size, size].

    scale: range of the visible part's side; above 1 the picture shrinks on its white ground.
    """
    batch = images.shape[0]
    side = torch.empty(batch).uniform_(*scale)
    room = (1 - side).abs()
    shift = torch.empty(batch, 2).uniform_(-1, 1) * room[:, None].clamp_min(0.06)
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0] = side * (torch.randint(0, 2, (batch,)) * 2 - 1 if flip else 1)
    theta[:, 1, 1], theta[:, :, 2] = side, shift
    grid = functional.affine_grid(theta, [batch, 3, size, size], align_corners=False)
    # Sampling the negative pads with zeros what is white in the picture.
    return 1 - functional.grid_sample(1 - images, grid, align_corners=False)


def soften(images: Tensor) -> Tensor:
    """What the autoencoder does to a picture, roughly: blur a random half of the batch, add a little noise."""
    batch, _, height, width = images.shape
    factor = 1.5 + float(torch.rand(())) * 0.8
    small = functional.interpolate(images, size=(int(height / factor), int(width / factor)), mode="area")
    blurred = functional.interpolate(small, size=(height, width), mode="bicubic")
    chosen = (torch.rand(batch, 1, 1, 1) < 0.5).to(images.dtype)
    noise = torch.randn_like(images) * torch.rand(batch, 1, 1, 1) * 0.06
    return (images * (1 - chosen) + blurred * chosen + noise).clamp(0, 1)
