"""Several views of one picture: encoders see crops and mirror images besides the whole."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Views:
    """The whole picture and `crops` random crops of it, half of them mirrored.

    An encoder's gradient at a single view is partly noise that only this view rewards; what many views agree on is
    what belongs to the picture (Shen et al., arXiv 2403.12404). smallest: shortest side of a crop, as a fraction.
    """

    crops: int = 0
    smallest: float = 0.7

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """images [B, 3, H, W] -> [(1 + crops) * B, 3, H, W], the whole pictures first; draws from the generator."""
        height, width = images.shape[-2:]
        views = [images]
        for _ in range(self.crops):
            side, top, left, mirror = torch.rand(4, generator=generator).tolist()
            side = self.smallest + (1.0 - self.smallest) * side
            h, w = max(1, round(height * side)), max(1, round(width * side))
            y, x = round((height - h) * top), round((width - w) * left)
            crop = F.interpolate(images[..., y : y + h, x : x + w], size=(height, width), mode="bilinear")
            views.append(crop.flip(-1) if mirror < 0.5 else crop)
        return torch.cat(views) if self.crops else images
