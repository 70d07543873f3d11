"""Differentiable image preprocessing for CLIP- and DINO-type encoders.

The usual preprocessing quantises to 8 bit, which has zero gradient almost everywhere; this one does the same resizing
and normalisation without the rounding and keeps a useful gradient where values leave the displayable range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FADE = 255.0  # one over the range of excess in which gradients that lead further out fade


class _ClampWithGradient(torch.autograd.Function):
    """Clamp whose backward pass blocks only the gradients that would push a clamped value further out."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, low: float, high: float) -> torch.Tensor:
        clamped = x.clamp(low, high)
        ctx.save_for_backward(x - clamped)
        return clamped

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (excess,) = ctx.saved_tensors
        (grad,) = grad_outputs
        # Descent moves against the gradient: above the range only a positive gradient leads back inside, below it only
        # a negative one. The others fade out over one 8-bit level: white grounds lie on the very edge of the range, and
        # there a sharp edge would let rounding decide about them.
        fading = (1.0 - FADE * excess.abs()).clamp_min(0.0)
        return torch.where(grad * excess >= 0, grad, grad * fading), None, None


def clamp_with_gradient(x: torch.Tensor, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
    """Clamp `x` (any shape) to [low, high]; out-of-range values can still be pulled back by gradient descent.

    A plain clamp has no gradient outside the range, so a saturated pixel could never be corrected.
    """
    return _ClampWithGradient.apply(x, low, high)


@dataclass(frozen=True)
class Preprocess:
    """Resize, crop and normalise images for an encoder.

    size: (height, width) in pixels the encoder expects.
    mean, std: per-channel normalisation, in units of the [0, 1] image.
    crop: True resizes the shorter side and cuts out the centre (the CLIP convention); False squeezes to `size`.
    mode: interpolation, "bicubic" or "bilinear", always with antialiasing.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    crop: bool = True
    mode: str = "bicubic"

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """images: [B, 3, H, W], RGB in [0, 1] -> [B, 3, *size] normalised, differentiable, same dtype and device."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must have shape [B, 3, H, W], got {list(images.shape)}")
        images = self._resize(images)
        mean = torch.tensor(self.mean, dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
        return (clamp_with_gradient(images) - mean) / std

    def _resize(self, images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[-2:]
        if (height, width) == self.size:
            return images
        target = self.size
        if self.crop:
            scale = max(self.size[0] / height, self.size[1] / width)
            target = (max(round(height * scale), self.size[0]), max(round(width * scale), self.size[1]))
        images = F.interpolate(images, size=target, mode=self.mode, antialias=True)
        top, left = (target[0] - self.size[0]) // 2, (target[1] - self.size[1]) // 2
        return images[:, :, top : top + self.size[0], left : left + self.size[1]]
