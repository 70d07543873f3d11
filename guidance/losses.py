"""Similarity terms between a predicted image and the references, pictures or a prompt, and their weighted loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

# The terms of Eq. 16-18 of arXiv 2602.15539, and S_DINO^content, which the paper lacks although DINO is its subject
# metric everywhere else.
CLIP_CONTENT = "S_CLIP_content"
CLIP_STYLE = "S_CLIP_style"
DINO_CONTENT = "S_DINO_content"
DINO_STYLE = "S_DINO_style"
CLIP_TEXT = "S_CLIP_text"  # of the picture and the prompt: the CLIP score
# By role of the reference and kind of encoder.
TERMS = {
    ("subject", "clip"): CLIP_CONTENT,
    ("style", "clip"): CLIP_STYLE,
    ("prompt", "clip"): CLIP_TEXT,
    ("subject", "dino"): DINO_CONTENT,
    ("style", "dino"): DINO_STYLE,
}
# By role: terms of weight 0 that watch and do not guide.
HELD_OUT = {"subject": "S_held_out_content", "style": "S_held_out_style", "prompt": "S_held_out_text"}

Embed = Callable[[torch.Tensor], torch.Tensor]
View = Callable[[torch.Tensor], torch.Tensor]
"""images [B, 3, H, W] -> [V * B, 3, H, W], V views of each, the images themselves first."""


def comparing_kind(role: str, has_dino: bool) -> str:
    """The kind of encoder, "clip" or "dino", that compares a role best: the subject DINO where there is one and CLIP
    otherwise, the style and a prompt CLIP.

    CLIP's embedding holds style as well as content, so that S_CLIP^content drags the picture towards the style of the
    subject's reference; DINO's global token suppresses style, which makes S_DINO^style the weakest term of the paper.
    """
    return "dino" if role == "subject" and has_dino else "clip"


def cosine_similarity(embeddings: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Mean cosine of each embedding with the reference embeddings. [B, D], [R, D] -> [B]."""
    return (F.normalize(embeddings, dim=-1) @ F.normalize(reference, dim=-1).transpose(0, 1)).mean(dim=-1)


@dataclass(frozen=True)
class SimilarityTerm:
    """One S term of the loss.

    name: one of the names above. encoder: key of the encoder in the objective. reference: [R, D] embeddings of the
    reference image or images, or of a prompt, on any device. weight: its share of the loss, >= 0.
    """

    name: str
    encoder: str
    reference: torch.Tensor
    weight: float


class SimilarityObjective:
    """R = sum_i w_i (1 - S_i), with S_i = cos(E_i(reference_i), E_i(image)) (Eq. 16-19 of arXiv 2602.15539).

    The paper has w_i = 1/3 for its three terms. `encoders` maps a name to embed(images [B, 3, H, W] in [0, 1]) ->
    [B, D]; each is run once however many terms use it.
    """

    def __init__(self, encoders: Mapping[str, Embed], terms: Sequence[SimilarityTerm]) -> None:
        if not terms:
            raise ValueError("the guidance objective needs at least one similarity term")
        for term in terms:
            if term.encoder not in encoders:
                raise ValueError(f"term {term.name} uses encoder {term.encoder!r}, which is not given")
            if term.weight < 0.0:
                raise ValueError(f"term {term.name} has negative weight {term.weight}")
        self.encoders = encoders
        self.terms = tuple(terms)

    def similarities(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """images [B, 3, H, W] in [0, 1] -> the cosine of every term, each [B]."""
        result: dict[str, torch.Tensor] = {}
        for name, embed in self.encoders.items():
            result.update(self._similarities_of(name, embed, images))
        return result

    def gradient(self, images: torch.Tensor, view: View | None = None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Gradient of each image's own R with respect to that image, [B, 3, H, W], and the similarities, each [B].

        With `view` R is the mean over the views; the similarities are those of the images themselves. Encoder by
        encoder, so that only one encoder's activations are in memory at a time; encoders whose terms all weigh 0 only
        look.
        """
        images = images.detach()
        gradient = torch.zeros_like(images)
        similarities: dict[str, torch.Tensor] = {}
        for name, embed in self.encoders.items():
            if not any(term.weight for term in self.terms if term.encoder == name):
                with torch.no_grad():
                    similarities.update(self._similarities_of(name, embed, images))
                continue
            leaf = images.clone().requires_grad_(True)
            with torch.enable_grad():
                seen = leaf if view is None else view(leaf)
                own = self._similarities_of(name, embed, seen)
                own = {key: value.view(-1, len(images)) for key, value in own.items()}
                # Summing over the batch leaves every sample its own gradient: no sample's loss depends on another.
                loss = sum(
                    term.weight * (1.0 - own[term.name]).mean(dim=0).sum() for term in self.terms if term.name in own
                )
            if isinstance(loss, torch.Tensor):
                gradient += torch.autograd.grad(loss, leaf)[0].to(gradient)
            similarities.update({key: value[0].detach() for key, value in own.items()})
        return gradient, similarities

    def _similarities_of(self, name: str, embed: Embed, images: torch.Tensor) -> dict[str, torch.Tensor]:
        terms = [term for term in self.terms if term.encoder == name]
        if not terms:
            return {}
        embeddings = embed(images)
        return {term.name: cosine_similarity(embeddings, term.reference.to(embeddings)) for term in terms}
