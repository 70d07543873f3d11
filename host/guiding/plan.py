"""What a guided run is asked to do, and the checks made before it starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import torch

from ...guidance.corrections import X0Correction
from ...guidance.losses import CLIP_CONTENT, CLIP_STYLE, CLIP_TEXT, DINO_CONTENT, DINO_STYLE, HELD_OUT, SimilarityTerm
from ...guidance.paper import PaperCorrection
from ...guidance.schedules import GuidanceWindow
from ...guidance.views import Views
from ..core.errors import ConductorError
from ..vision.decoders import DECODERS, can_decode
from ..vision.encoders import RunEncoder, open_encoder
from ..vision.prompts import PROMPT, embed_prompt, reads_text
from ..vision.references import Picture, References, are_embedded, embed_references, picture_of
from ..vision.vae import check_vae

MODES = ("x0", "paper", "paper, VP scale")
BETAS = (0.5, 0.9)  # Adam's, within the ranges of arXiv 2603.16797


@dataclass(frozen=True)
class TermRequest:
    """A similarity term: its name, the role of its reference ("subject", "style", "prompt"), the encoder ("clip",
    "dino", "held_out"), its weight."""

    name: str
    role: str
    encoder: str
    weight: float


@dataclass(frozen=True)
class GuidanceOptions:
    """How guidance goes about it; see `X0Correction` and `PaperCorrection` for the formulas.

    mode: one of MODES. inner_steps, crops, anchor, adam, max_displacement: of x0 mode; max_displacement as a fraction
    of RMS(x0). paper_step: the paper's m. time_travel: how often a guided step is repeated from renoised. decoder: one
    of DECODERS. guard: stop when the held-out similarity falls two guided steps in a row.
    final_scores: decode and score the finished pictures as well.
    """

    mode: str = "x0"
    max_displacement: float = 0.5
    inner_steps: int = 1
    crops: int = 0
    anchor: float = 0.0
    adam: bool = False
    time_travel: int = 0
    paper_step: float = 10.0
    decoder: str = "auto"
    guard: bool = True
    final_scores: bool = False

    @property
    def is_paper(self) -> bool:
        """Whether the gradient goes through the denoiser."""
        return self.mode != "x0"


@dataclass(frozen=True)
class GuidancePlan:
    """Settings, references and networks of metric guidance.

    subject_strength, style_strength, prompt_strength: weight of each role in the loss; only their ratios matter to the
    x0 step. prompt: what the picture should show; read only if it weighs something.
    guidance_strength: RMS of a guided step's displacement, as a fraction of the predicted latent's RMS (eta).
    subject_image, style_image: IMAGE tensors [R, H, W, C], C >= 3, RGB in [0, 1]; several pictures count on average.
    references: pictures of roles that go before these. held_out_encoder: watches and does not guide.
    """

    subject_strength: float
    style_strength: float
    guidance_strength: float
    window: GuidanceWindow = field(default_factory=GuidanceWindow)
    vae: Any = None
    subject_image: Any = None
    style_image: Any = None
    clip_encoder: Any = None
    dino_encoder: Any = None
    options: GuidanceOptions = field(default_factory=GuidanceOptions)
    references: References | None = None
    held_out_encoder: Any = None
    prompt_strength: float = 0.0
    prompt: str = ""

    @property
    def is_off(self) -> bool:
        """Whether this is plain sampling."""
        strengths = (self.subject_strength, self.style_strength, self.prompt_strength)
        return self.guidance_strength == 0.0 or all(strength == 0.0 for strength in strengths)

    def correction(self) -> X0Correction | PaperCorrection:
        """The strategy these settings name."""
        options = self.options
        if options.is_paper:
            return PaperCorrection(options.paper_step, vp=options.mode == MODES[2])
        return X0Correction(
            self.guidance_strength,
            options.max_displacement,
            options.inner_steps,
            options.anchor,
            Views(options.crops),
            BETAS if options.adam else None,
        )

    def is_guided(self, step: int, steps: int) -> bool:
        """Whether step `step` (from 0) of `steps` is guided: the paper guides all of them."""
        return self.options.is_paper or self.window.is_active(step, steps)

    def span(self, steps: int) -> tuple[int, int]:
        """First step of `steps` that may be guided (from 0), and the step after the last."""
        return (0, steps) if self.options.is_paper else self.window.span(steps)

    def terms(self) -> list[TermRequest]:
        """The similarity terms these inputs allow.

        The subject is compared by DINO where there is one and by CLIP otherwise, the style by CLIP. CLIP's embedding
        holds style as well as content, so S_CLIP^content drags the picture towards the style of the subject's
        reference; DINO's global token suppresses style, which makes S_DINO^style the paper's weakest term. The paper's
        own terms are S_CLIP^content, S_CLIP^style and S_DINO^style, a third each (Eq. 19); a prompt is none of them.
        """
        subject, style = self.subject_strength, self.style_strength
        if self.options.is_paper:
            requests = [
                TermRequest(CLIP_CONTENT, "subject", "clip", subject / 3),
                TermRequest(CLIP_STYLE, "style", "clip", style / 3),
                TermRequest(DINO_STYLE, "style", "dino", style / 3),
                TermRequest(CLIP_TEXT, PROMPT, "clip", self.prompt_strength / 3),
            ]
        else:
            by_dino = self.dino_encoder is not None
            requests = [
                TermRequest(
                    DINO_CONTENT if by_dino else CLIP_CONTENT, "subject", "dino" if by_dino else "clip", subject
                ),
                TermRequest(CLIP_STYLE, "style", "clip", style),
                TermRequest(CLIP_TEXT, PROMPT, "clip", self.prompt_strength),
            ]
        return [request for request in requests if request.weight > 0.0]

    def watched(self) -> list[TermRequest]:
        """Terms of weight 0 by an encoder that does not guide: the one held out, or a connected one left unused."""
        guiding = self.terms()
        source = "held_out" if self.held_out_encoder is not None else None
        for name in ("clip", "dino"):
            unused = all(term.encoder != name for term in guiding)
            if source is None and unused and self.encoder(name) is not None:
                source = name
        if source is None:
            return []
        roles = [role for role in _roles(guiding) if role != PROMPT or reads_text(self.encoder(source))]
        return [TermRequest(HELD_OUT[role], role, source, 0.0) for role in roles]

    def picture_roles(self) -> list[str]:
        """The guided roles that are compared with pictures."""
        return [role for role in _roles(self.terms()) if role != PROMPT]

    def encoder(self, name: str) -> Any:
        """The encoder object called "clip", "dino" or "held_out", None if there is none."""
        return getattr(self, f"{name}_encoder")

    def pictures(self, role: str) -> list[Picture]:
        """The reference pictures of "subject" or "style". Raises ConductorError if there are none."""
        given = self.references.of(role) if self.references is not None else []
        if given:
            return given
        image = self.subject_image if role == "subject" else self.style_image
        if image is None:
            strength = self.subject_strength if role == "subject" else self.style_strength
            raise ConductorError(
                f"{role}_image: {role}_strength is {strength:g}, but there is no reference picture. Connect one, or "
                f"set {role}_strength to 0."
            )
        return [picture_of(f"{role}_image", image)]

    def embedded_prompt(self, encoder: str) -> torch.Tensor:
        """The prompt's embedding [1, D] by the encoder called so. Raises ConductorError if that reads no text."""
        return embed_prompt(self.encoder(encoder), self.prompt, f"{encoder}_encoder", "set prompt_strength to 0")

    def check(self, latent_format: Any) -> None:
        """Raise ConductorError if something is missing or wrong, naming the input and what to do."""
        if self.options.mode not in MODES or self.options.decoder not in DECODERS:
            raise ConductorError(
                f"mode, decoder: {self.options.mode!r}, {self.options.decoder!r} are not among {', '.join(MODES)} and "
                f"{', '.join(DECODERS)}. Choose others."
            )
        if not can_decode(self.options.decoder, self.vae, latent_format):
            raise ConductorError(
                "vae: metric guidance looks at decoded pictures. Connect a VAE, or set guidance_strength to 0."
            )
        if self.clip_encoder is None and self.dino_encoder is None:
            raise ConductorError(
                "clip_encoder and dino_encoder: metric guidance needs one of them at least. Connect Load CLIP Vision "
                "or Metric Encoder Loader, or set guidance_strength to 0."
            )
        by_clip = [term.role for term in self.terms() if term.encoder == "clip"]
        if self.clip_encoder is None and by_clip:
            raise ConductorError(
                f"clip_encoder: the {by_clip[0]} is compared by a CLIP-type encoder. Connect one, or set "
                f"{by_clip[0]}_strength to 0."
            )
        if self.dino_encoder is None and any(term.encoder == "dino" for term in self.terms()):
            raise ConductorError(
                "dino_encoder: the paper compares the style by DINO as well. Connect a DINO-type encoder, or set mode "
                "to x0."
            )
        for role in self.picture_roles():
            self.pictures(role)
        for name in ("clip", "dino", "held_out"):
            if self.encoder(name) is not None:
                open_encoder(self.encoder(name), f"{name}_encoder").close()
        if PROMPT in by_clip:
            if not self.prompt.strip():
                raise ConductorError(
                    f"prompt: prompt_strength is {self.prompt_strength:g}, but the prompt is empty. Write what the "
                    "picture should show, or set prompt_strength to 0."
                )
            self.embedded_prompt("clip")
        if self.vae is not None:
            check_vae(self.vae, latent_format)


def _roles(terms: list[TermRequest]) -> list[str]:
    return list(dict.fromkeys(term.role for term in terms))


def similarity_terms(
    plan: GuidancePlan, requests: Sequence[TermRequest], encoders: Mapping[str, RunEncoder]
) -> list[SimilarityTerm]:
    """The terms that are requested, with the embeddings of their pictures or of the prompt.

    encoders: opened for the run; those are loaded whose embeddings are not known from an earlier run.
    """
    pictures = {role: plan.pictures(role) for role in dict.fromkeys(r.role for r in requests) if role != PROMPT}
    needed = {
        request.encoder
        for request in requests
        if request.role != PROMPT and not are_embedded(plan.encoder(request.encoder), pictures[request.role])
    }
    # Outside inference mode, also for loading: weights moved to the device here stay fit for gradients.
    with torch.inference_mode(False), torch.no_grad():
        comfy.model_management.load_models_gpu([encoders[name].patcher for name in needed])
        terms = []
        for request in requests:
            if request.role == PROMPT:
                reference = plan.embedded_prompt(request.encoder)
            else:
                source = plan.encoder(request.encoder)
                reference = embed_references(source, encoders[request.encoder], pictures[request.role])
            terms.append(SimilarityTerm(request.name, request.encoder, reference, request.weight))
    return terms
