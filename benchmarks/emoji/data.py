"""The small world's pictures: loading, the split and augmentations.

The archive ``emoji64.npz`` (1,129 subjects x up to 10 styles, 64 x 64 RGB on white) is not part of the repository; only
training needs it. What a run needs of it lies in ``assets``. The pictures of the rendered styles are made when it is
read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from rendered_styles import RENDERED, SOURCE

ASSETS = Path(__file__).resolve().parent / "assets"


@dataclass(frozen=True)
class Pictures:
    """images [N, 3, 64, 64] uint8 RGB; subject, style [N] int64 indices into the names."""

    images: Tensor
    subject: Tensor
    style: Tensor
    subject_names: list[str]
    style_names: list[str]
    holdout_subjects: list[str]
    holdout_styles: list[str]

    def where(self, subjects: list[str], styles: list[str] | None = None) -> Tensor:
        """Mask [N] of the pictures of these subjects (and styles)."""
        wanted = torch.tensor([self.subject_names.index(name) for name in subjects])
        mask = torch.isin(self.subject, wanted)
        if styles is not None:
            mask &= torch.isin(self.style, torch.tensor([self.style_names.index(name) for name in styles]))
        return mask

    def picture(self, subject: str, style: str) -> Tensor:
        """The true picture [3, 64, 64] in [0, 1]. Raises KeyError if the world has none."""
        found = torch.nonzero(self.where([subject], [style]))
        if not len(found):
            raise KeyError(f"no picture of {subject!r} in style {style!r}")
        return self.images[found[0, 0]].float() / 255


def load_pictures(world: Path) -> Pictures:
    """Read ``emoji64.npz`` and the hold-outs named in ``emoji_tokens.json`` from the world's folder.

    The rendered styles come after the archive's own, and are held out too.
    """
    with np.load(world / "emoji64.npz", allow_pickle=False) as archive:
        images = torch.from_numpy(archive["images"]).permute(0, 3, 1, 2).contiguous()
        subject = torch.from_numpy(archive["subject"]).long()
        style = torch.from_numpy(archive["style"]).long()
        subjects, styles = archive["subject_names"].tolist(), archive["style_names"].tolist()
    names = json.loads((world / "emoji_tokens.json").read_text(encoding="utf-8"))
    source = style == styles.index(SOURCE)
    drawings, drawn = images[source].float() / 255, subject[source]
    for i, render in enumerate(RENDERED.values()):
        rendered = (torch.stack([render(drawing) for drawing in drawings]) * 255).round().byte()
        images, subject = torch.cat([images, rendered]), torch.cat([subject, drawn])
        style = torch.cat([style, torch.full((len(rendered),), len(styles) + i)])
    held_styles = [*names["holdout_styles"], *RENDERED]
    return Pictures(images, subject, style, subjects, [*styles, *RENDERED], names["holdout_subjects"], held_styles)


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
