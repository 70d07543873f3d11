"""The small world's pictures, and which are held out.

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

from .files import ARCHIVE, WORDS
from .rendered_styles import RENDERED, SOURCE


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
    with np.load(world / ARCHIVE, allow_pickle=False) as archive:
        images = torch.from_numpy(archive["images"]).permute(0, 3, 1, 2).contiguous()
        subject = torch.from_numpy(archive["subject"]).long()
        style = torch.from_numpy(archive["style"]).long()
        subjects, styles = archive["subject_names"].tolist(), archive["style_names"].tolist()
    names = json.loads((world / WORDS).read_text(encoding="utf-8"))
    source = style == styles.index(SOURCE)
    drawings, drawn = images[source].float() / 255, subject[source]
    for i, render in enumerate(RENDERED.values()):
        rendered = (torch.stack([render(drawing) for drawing in drawings]) * 255).round().byte()
        images, subject = torch.cat([images, rendered]), torch.cat([subject, drawn])
        style = torch.cat([style, torch.full((len(rendered),), len(styles) + i)])
    held_styles = [*names["holdout_styles"], *RENDERED]
    return Pictures(images, subject, style, subjects, [*styles, *RENDERED], names["holdout_subjects"], held_styles)
