"""Scoring finished pictures against references, without any guidance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ...guidance.losses import comparing_kind, cosine_similarity
from ..core import ConductorError
from ..vision import (
    PROMPT,
    Picture,
    References,
    RunEncoder,
    embed_prompt,
    embed_references,
    normal_copy,
    open_encoder,
    picture_of,
    pictures_of,
    reads_text,
)
from .heat import burn_table

ROLES = ("subject", "style")
WITHOUT_PROMPT = "leave prompt empty"


class _Comparer:
    """Compares pictures with references by one encoder; the references are embedded with the first pictures.

    source: CLIP_VISION or METRIC_ENCODER, from the input `name`. pictures: by role. prompt: of the role PROMPT, "" for
    none.
    """

    def __init__(self, source: Any, name: str, pictures: Mapping[str, list[Picture]], prompt: str = "") -> None:
        self._source = source
        self._name = name
        self._pictures = pictures
        self._prompt = prompt
        self._references: dict[str, Tensor] = {}

    def similarities(self, images: Tensor) -> dict[str, list[float]]:
        """IMAGE [N, H, W, 3] -> by role, each picture's mean cosine with the references. Raises ConductorError."""
        with _opened(self._source, self._name) as encoder:
            embedded = _embedded(encoder, images)
            if not self._references:
                for role, pictures in self._pictures.items():
                    self._references[role] = embed_references(self._source, encoder, pictures)
                if self._prompt:
                    text = embed_prompt(self._source, self._prompt, self._name, WITHOUT_PROMPT)
                    self._references[PROMPT] = text
            return {
                role: cosine_similarity(embedded, reference.to(embedded)).tolist()
                for role, reference in self._references.items()
            }


@contextmanager
def _opened(source: Any, name: str) -> Iterator[RunEncoder]:
    """An encoder, loaded. Raises ConductorError naming the input."""
    encoder = open_encoder(source, name)
    try:
        # Outside inference mode, also for loading: weights moved to the device here stay fit for gradients.
        with torch.inference_mode(False), torch.no_grad():
            comfy.model_management.load_models_gpu([encoder.patcher])
            yield encoder
    finally:
        encoder.close()


def _embedded(encoder: RunEncoder, images: Tensor) -> Tensor:
    """IMAGE [N, H, W, 3] -> [N, D], one by one: any number of pictures fits, and none depends on the others."""
    return torch.cat([encoder.embed(image) for image in normal_copy(images).float().movedim(-1, 1).split(1)])


def embeddings(source: Any, name: str, images: Tensor, references: list[Picture]) -> tuple[Tensor, Tensor | None]:
    """Embeddings by one encoder, on the CPU: ``[N, D]`` of pictures, and ``[R, D]`` of references, None without any.

    Args:
        source: CLIP_VISION or METRIC_ENCODER, from the input ``name``.
        images: ``[N, H, W, 3]``.
        references: pictures of a role.

    Raises:
        ConductorError: it is no encoder.
    """
    with _opened(source, name) as encoder:
        known = embed_references(source, encoder, references) if references else None
        return _embedded(encoder, images).cpu(), known


@dataclass(frozen=True)
class Score:
    """Mean cosine similarities, the harmonic mean of subject and style (0 unless both are positive; a role without
    references counts as absent, its value 0), and as Markdown tables every picture by every encoder, and its burn."""

    subject: float
    style: float
    both: float
    table: str
    prompt: float
    burn: str


def fusion_score(
    images: torch.Tensor,
    encoders: dict[str, Any],
    subject_image: torch.Tensor | None,
    style_image: torch.Tensor | None,
    references: References | None = None,
    prompt: str = "",
    style_alone: torch.Tensor | None = None,
) -> Score:
    """Score IMAGE [N, H, W, C] by the encoders, given by input name, None if not connected.

    prompt: what the pictures should show, "" if that is not asked; by the encoders that read text. style_alone: IMAGE
    that burn is held against. Raises ConductorError naming an input that cannot be used.
    """
    pixels = picture_of("images", images).images
    burn = burn_table(pixels, style_alone)
    given = {"subject": subject_image, "style": style_image}
    roles = {role: found for role in ROLES if (found := pictures_of(role, references, given[role]))}
    prompt = prompt.strip()
    if not roles and not prompt:
        raise ConductorError(
            "subject_image, style_image: there is nothing to compare with. Connect a picture of the subject or of the "
            "style, or references, or write a prompt."
        )
    if prompt and not any(reads_text(source) for source in encoders.values()):
        embed_prompt(None, prompt, next(iter(encoders)), WITHOUT_PROMPT)
    columns: dict[tuple[str, str], list[float]] = {}
    for name, source in encoders.items():
        if source is not None:
            comparer = _Comparer(source, name, roles, prompt if reads_text(source) else "")
            columns |= {(name, role): values for role, values in comparer.similarities(pixels).items()}
    means = {
        role: _mean([_mean(values) for (_, of), values in columns.items() if of == role]) for role in (*ROLES, PROMPT)
    }
    subject, style = means["subject"], means["style"]
    both = 2 * subject * style / (subject + style) if subject > 0 and style > 0 else 0.0
    return Score(subject, style, both, _table(columns), means[PROMPT], burn)


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
    """Compares pictures with references, each role by the kind of encoder that does it best, see `comparing_kind`.

    Args:
        references: IMAGE by role; None leaves the role out.
        clip_encoder, dino_encoder: CLIP_VISION or METRIC_ENCODER, or None.

    Attributes:
        given: all of these.

    Raises:
        ConductorError: a reference that cannot be used, or without an encoder that could compare it.
    """

    def __init__(self, references: Mapping[str, Tensor | None], clip_encoder: Any, dino_encoder: Any) -> None:
        self.given = (*(references[role] for role in sorted(references)), clip_encoder, dino_encoder)
        sources = {"clip": clip_encoder, "dino": dino_encoder}
        by_kind: dict[str, dict[str, list[Picture]]] = {}
        for role in references:
            kind = comparing_kind(role, dino_encoder is not None)
            pictures = pictures_of(role, None, references[role])
            if not pictures:
                continue
            if sources[kind] is None:
                raise ConductorError(
                    f"{role}_image: there is no encoder to compare it by. Connect clip_encoder, or leave {role}_image "
                    "empty."
                )
            by_kind.setdefault(kind, {})[role] = pictures
        self._comparers = [_Comparer(sources[kind], f"{kind}_encoder", roles) for kind, roles in by_kind.items()]

    def scores(self, image: Tensor) -> dict[str, float]:
        """By role, the similarity of a picture ``[height, width, 3]`` to its references."""
        return {
            role: value for comparer in self._comparers for role, (value,) in comparer.similarities(image[None]).items()
        }
