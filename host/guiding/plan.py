"""What a guided run is asked to do, and the checks made before it starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from ...guidance.corrections import X0Correction
from ...guidance.losses import HELD_OUT, TERMS, comparing_kind
from ...guidance.paper import PaperCorrection
from ...guidance.schedules import GuidanceWindow
from ...guidance.views import Views
from ..core import ConductorError
from ..vision import (
    DECODERS,
    PROMPT,
    Picture,
    References,
    can_decode,
    check_vae,
    embed_prompt,
    open_encoder,
    pictures_of,
    reads_text,
)

MODES = ("x0", "paper", "paper, VP scale")
BETAS = (0.5, 0.9)  # Adam's, within the ranges of arXiv 2603.16797
ROLES = ("subject", "style", PROMPT)
# Role and encoder of the paper's terms, a third each (Eq. 19), and of a prompt, which is none of them.
PAPER_TERMS: tuple[tuple[str, str], ...] = (("subject", "clip"), ("style", "clip"), ("style", "dino"), (PROMPT, "clip"))


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
        return self.guidance_strength == 0.0 or all(self.strength(role) == 0.0 for role in ROLES)

    def strength(self, role: str) -> float:
        """The weight of "subject", "style" or "prompt"."""
        return getattr(self, f"{role}_strength")

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
        """The similarity terms these inputs ask for: the paper's, or one for each role, see `comparing_kind`."""
        if self.options.is_paper:
            pairs, share = PAPER_TERMS, 3
        else:
            pairs, share = tuple((role, comparing_kind(role, self.dino_encoder is not None)) for role in ROLES), 1
        requests = [TermRequest(TERMS[pair], *pair, self.strength(pair[0]) / share) for pair in pairs]
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

    def given_pictures(self, role: str) -> list[Picture]:
        """The reference pictures of "subject" or "style", if there are any."""
        return pictures_of(role, self.references, getattr(self, f"{role}_image"))

    def pictures(self, role: str) -> list[Picture]:
        """The reference pictures of "subject" or "style". Raises ConductorError if there are none."""
        given = self.given_pictures(role)
        if not given:
            raise ConductorError(
                f"{role}_image: {role}_strength is {self.strength(role):g}, but there is no reference picture. Connect "
                f"one, or set {role}_strength to 0."
            )
        return given

    def embedded_prompt(self, encoder: str) -> torch.Tensor:
        """The prompt's embedding [1, D] by the encoder called so. Raises ConductorError if that reads no text."""
        return embed_prompt(self.encoder(encoder), self.prompt, f"{encoder}_encoder", "set prompt_strength to 0")

    def check(self, latent_format: Any) -> None:
        """Raise ConductorError if something is missing or wrong, naming the input and what to do."""
        self._check_decoding(latent_format)
        self._check_encoders()
        for role in self.picture_roles():
            self.pictures(role)
        for name in ("clip", "dino", "held_out"):
            if self.encoder(name) is not None:
                open_encoder(self.encoder(name), f"{name}_encoder").close()
        self._check_prompt()
        if self.vae is not None:
            check_vae(self.vae, latent_format)

    def _check_decoding(self, latent_format: Any) -> None:
        if self.options.mode not in MODES or self.options.decoder not in DECODERS:
            raise ConductorError(
                f"mode, decoder: {self.options.mode!r}, {self.options.decoder!r} are not among {', '.join(MODES)} and "
                f"{', '.join(DECODERS)}. Choose others."
            )
        if not can_decode(self.options.decoder, self.vae, latent_format):
            raise ConductorError(
                "vae: metric guidance looks at decoded pictures. Connect a VAE, or set guidance_strength to 0."
            )

    def _check_encoders(self) -> None:
        if self.clip_encoder is None and self.dino_encoder is None:
            raise ConductorError(
                "clip_encoder and dino_encoder: metric guidance needs one of them at least. Connect Load CLIP Vision "
                "or Metric Encoder Loader, or set guidance_strength to 0."
            )
        for term in self.terms():
            if self.encoder(term.encoder) is not None:
                continue
            if term.encoder == "clip":
                raise ConductorError(
                    f"clip_encoder: the {term.role} is compared by a CLIP-type encoder. Connect one, or set "
                    f"{term.role}_strength to 0."
                )
            raise ConductorError(
                "dino_encoder: the paper compares the style by DINO as well. Connect a DINO-type encoder, or set mode "
                "to x0."
            )

    def _check_prompt(self) -> None:
        readers = [term.encoder for term in self.terms() if term.role == PROMPT]
        if readers and not self.prompt.strip():
            raise ConductorError(
                f"prompt: prompt_strength is {self.prompt_strength:g}, but the prompt is empty. Write what the picture "
                "should show, or set prompt_strength to 0."
            )
        for name in readers:
            self.embedded_prompt(name)


def _roles(terms: list[TermRequest]) -> list[str]:
    return list(dict.fromkeys(term.role for term in terms))
