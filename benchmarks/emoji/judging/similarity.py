"""What metric guidance raises, measured by its own encoders."""

from __future__ import annotations

import torch
from torch import Tensor

from ..methods.guidance import STYLE_SUBJECTS, Encoders
from ..world.pictures import Pictures
from ..world.splits import SUBJECT_STYLES
from .evaluation import Measure


def similarity_to_references(pictures: Pictures, encoders: Encoders) -> Measure:
    """S_DINO_content and S_CLIP_style of any pictures, to the references of guidance."""
    from lora_conductor.guidance.losses import cosine_similarity

    @torch.no_grad()
    def score(images: Tensor, subject: str, style: str) -> dict[str, Tensor]:
        drawings = torch.stack([pictures.picture(subject, name) for name in SUBJECT_STYLES])
        others = torch.stack([pictures.picture(name, style) for name in STYLE_SUBJECTS])
        dino, clip = encoders.dino.encoder.embed, encoders.clip.encoder.embed
        return {
            "S_DINO_content": cosine_similarity(dino(images), dino(drawings)),
            "S_CLIP_style": cosine_similarity(clip(images), clip(others)),
        }

    return score
