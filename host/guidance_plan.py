"""What a guided run is asked to do, and the checks made before it starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from ..guidance.losses import CLIP_CONTENT, CLIP_STYLE, DINO_CONTENT
from ..guidance.schedules import GuidanceWindow
from .decode import check_vae
from .encoders import open_encoder
from .errors import ConductorError


@dataclass(frozen=True)
class TermRequest:
    """A similarity term: its name, the role of its reference, the encoder ("clip" or "dino") and its weight."""

    name: str
    role: str
    encoder: str
    weight: float


@dataclass(frozen=True)
class GuidancePlan:
    """Settings, references and networks of metric guidance.

    subject_strength, style_strength: weight of each role in the loss; only their ratio matters to the step.
    guidance_strength: RMS of a guided step's displacement, as a fraction of the predicted latent's RMS (eta).
    subject_image, style_image: IMAGE tensors [R, H, W, C], C >= 3, RGB in [0, 1]; several pictures count on average.
    """

    subject_strength: float
    style_strength: float
    guidance_strength: float
    window: GuidanceWindow = field(default_factory=GuidanceWindow)
    vae: Any = None
    subject_image: torch.Tensor | None = None
    style_image: torch.Tensor | None = None
    clip_encoder: Any = None
    dino_encoder: Any = None

    @property
    def is_off(self) -> bool:
        """Whether this is plain sampling."""
        return self.guidance_strength == 0.0 or (self.subject_strength == 0.0 and self.style_strength == 0.0)

    def terms(self) -> list[TermRequest]:
        """The similarity terms these inputs allow, one for each role with a strength above 0.

        The subject is compared by DINO where there is one and by CLIP otherwise, the style by CLIP. CLIP's embedding
        holds style as well as content, so S_CLIP^content drags the picture towards the style of the subject's
        reference; DINO's global token suppresses style, which makes S_DINO^style the paper's weakest term.
        """
        subject = (DINO_CONTENT, "dino") if self.dino_encoder is not None else (CLIP_CONTENT, "clip")
        requests = [
            TermRequest(subject[0], "subject", subject[1], self.subject_strength),
            TermRequest(CLIP_STYLE, "style", "clip", self.style_strength),
        ]
        return [request for request in requests if request.weight > 0.0]

    def reference(self, role: str) -> torch.Tensor:
        """The reference pictures of a role, [R, H, W, C]. Raises ConductorError if there are none."""
        image = self.subject_image if role == "subject" else self.style_image
        if image is None:
            strength = self.subject_strength if role == "subject" else self.style_strength
            raise ConductorError(
                f"{role}_image: {role}_strength is {strength:g}, but there is no reference picture. Connect one, or "
                f"set {role}_strength to 0."
            )
        return image

    def check(self, latent_format: Any) -> None:
        """Raise ConductorError if something is missing or wrong, naming the input and what to do."""
        if self.vae is None:
            raise ConductorError(
                "vae: metric guidance looks at decoded pictures. Connect a VAE, or set guidance_strength to 0."
            )
        if self.clip_encoder is None and self.dino_encoder is None:
            raise ConductorError(
                "clip_encoder and dino_encoder: metric guidance needs one of them at least. Connect Load CLIP Vision "
                "or Metric Encoder Loader, or set guidance_strength to 0."
            )
        if self.style_strength > 0.0 and self.clip_encoder is None:
            raise ConductorError(
                "clip_encoder: the style is compared by a CLIP-type encoder. Connect one, or set style_strength to 0."
            )
        for role in dict.fromkeys(term.role for term in self.terms()):
            _check_picture(f"{role}_image", self.reference(role))
        for name in ("clip_encoder", "dino_encoder"):
            if getattr(self, name) is not None:
                open_encoder(getattr(self, name), name).close()
        check_vae(self.vae, latent_format)


def _check_picture(name: str, image: torch.Tensor) -> None:
    if image.ndim != 4 or image.shape[-1] < 3:
        raise ConductorError(f"{name}: expected pictures of shape [N, H, W, 3], got {list(image.shape)}.")
    if 0 in image.shape or min(image.shape[1:3]) < 8:
        raise ConductorError(f"{name}: the picture is empty or too small ({list(image.shape)}). Use a real picture.")
    if not torch.isfinite(image).all():
        raise ConductorError(f"{name}: the picture holds values that are not numbers. Check the nodes before it.")
