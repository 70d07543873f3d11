"""Scoring finished pictures against references, without any guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ...guidance.losses import cosine_similarity
from ..core.errors import ConductorError
from ..vision.autograd import normal_copy
from ..vision.encoders import open_encoder
from ..vision.prompts import PROMPT, embed_prompt, reads_text
from ..vision.references import Picture, References, embed_references, picture_of


@dataclass(frozen=True)
class Score:
    """Mean cosine similarities, the harmonic mean of subject and style (0 unless both are positive; a role without
    references counts as absent, its value 0), and every picture by every encoder as a Markdown table."""

    subject: float
    style: float
    both: float
    table: str
    prompt: float


def fusion_score(
    images: torch.Tensor,
    encoders: dict[str, Any],
    subject_image: torch.Tensor | None,
    style_image: torch.Tensor | None,
    references: References | None = None,
    prompt: str = "",
) -> Score:
    """Score IMAGE [N, H, W, C] by the encoders, given by input name, None if not connected.

    prompt: what the pictures should show, "" if that is not asked; by the encoders that read text. Raises
    ConductorError naming an input that cannot be used.
    """
    picture = picture_of("images", images)
    roles: dict[str, list[Picture]] = {}
    for role, image in (("subject", subject_image), ("style", style_image)):
        given = references.of(role) if references is not None else []
        if not given and image is not None:
            given = [picture_of(f"{role}_image", image)]
        if given:
            roles[role] = given
    prompt = prompt.strip()
    if not roles and not prompt:
        raise ConductorError(
            "subject_image, style_image: there is nothing to compare with. Connect a picture of the subject or of the "
            "style, or references, or write a prompt."
        )
    if prompt and not any(reads_text(source) for source in encoders.values()):
        embed_prompt(None, prompt, next(iter(encoders)), "leave prompt empty")
    columns: dict[tuple[str, str], list[float]] = {}
    for name, source in encoders.items():
        if source is None:
            continue
        opened = open_encoder(source, name)
        try:
            with torch.inference_mode(False), torch.no_grad():
                comfy.model_management.load_models_gpu([opened.patcher])
                # One by one: any number of pictures fits, and none depends on the others.
                pixels = normal_copy(picture.images).float().movedim(-1, 1).split(1)
                embedded = torch.cat([opened.embed(image) for image in pixels])
                for role, pictures in roles.items():
                    reference = embed_references(source, opened, pictures).to(embedded)
                    columns[name, role] = cosine_similarity(embedded, reference).tolist()
                if prompt and reads_text(source):
                    text = embed_prompt(source, prompt, name, "leave prompt empty").to(embedded)
                    columns[name, PROMPT] = cosine_similarity(embedded, text).tolist()
        finally:
            opened.close()
    means = {
        role: _mean([_mean(values) for (_, of), values in columns.items() if of == role])
        for role in ("subject", "style", PROMPT)
    }
    subject, style = means["subject"], means["style"]
    both = 2 * subject * style / (subject + style) if subject > 0 and style > 0 else 0.0
    return Score(subject, style, both, _table(columns), means[PROMPT])


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _table(columns: dict[tuple[str, str], list[float]]) -> str:
    heads = [f"{role} ({name})" for name, role in columns]
    lines = [f"| picture | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    rows = list(zip(*columns.values(), strict=True))
    for index, values in enumerate(rows, 1):
        lines.append(f"| {index} | {' | '.join(f'{value:.3f}' for value in values)} |")
    if len(rows) > 1:
        lines.append(f"| mean | {' | '.join(f'{_mean(values):.3f}' for values in columns.values())} |")
    return "\n".join(lines)


class Judge:
    """Compares pictures with references: the subject by DINO where there is one, else by CLIP; the style by CLIP.

    Args:
        references: IMAGE by role; None leaves the role out.
        clip_encoder, dino_encoder: CLIP_VISION or METRIC_ENCODER, or None.

    Raises:
        ConductorError: a reference without an encoder that could compare it.
    """

    def __init__(self, references: dict[str, Tensor | None], clip_encoder: Any, dino_encoder: Any) -> None:
        sources = {"subject": (dino_encoder, "dino_encoder"), "style": (clip_encoder, "clip_encoder")}
        if dino_encoder is None:
            sources["subject"] = clip_encoder, "clip_encoder"
        self._references: dict[str, Tensor] = {}
        self._sources: dict[str, tuple[Any, str]] = {}
        for role, picture in references.items():
            if picture is None:
                continue
            if sources[role][0] is None:
                raise ConductorError(
                    f"{role}_image: there is no encoder to compare it by. Connect clip_encoder, or leave {role}_image "
                    "empty."
                )
            self._references[role], self._sources[role] = picture, sources[role]

    def scores(self, image: Tensor) -> dict[str, float]:
        """By role, the similarity of a picture ``[height, width, 3]`` to its references."""
        return {
            role: float(cosine_similarity(self._embedded(role, image[None]), self._embedded(role, reference)).mean())
            for role, reference in self._references.items()
        }

    def _embedded(self, role: str, images: Tensor) -> Tensor:
        encoder = open_encoder(*self._sources[role])
        try:
            # Weights moved to the device here stay fit for gradients.
            with torch.inference_mode(False), torch.no_grad():
                comfy.model_management.load_models_gpu([encoder.patcher])
                return encoder.embed(images.clone()[..., :3].movedim(-1, 1))
        finally:
            encoder.close()
