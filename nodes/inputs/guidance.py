"""Inputs of every guiding node that most users set, and the plan they make with guidance_settings.py's."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ...guidance.schedules import GuidanceWindow
from ...host.core import ConductorError
from ...host.guiding import GuidanceOptions, GuidancePlan
from .sockets import ENCODERS


def reference_inputs() -> list[io.Input]:
    """The VAE, the pictures to compare with and the encoders to compare by."""
    return [
        io.Vae.Input(
            "vae",
            optional=True,
            tooltip="Decodes the picture in the making. Needed for guidance: the VAE that belongs to the model.",
        ),
        *(
            io.Image.Input(
                f"{role}_image",
                optional=True,
                tooltip=f"Picture {what}, or several in a batch. Needed while {role}_strength is above 0.",
            )
            for role, what in (("subject", "of the subject"), ("style", "in the style"))
        ),
        *encoder_inputs(),
    ]


def encoder_inputs() -> list[io.Input]:
    """The encoders that compare, where each has its part."""
    parts = {
        "clip": "CLIP- or SigLIP-type encoder, from Load CLIP Vision or Metric Encoder Loader. Compares the style, and "
        "the subject too if there is no dino_encoder.",
        "dino": "DINO-type encoder, from Load CLIP Vision or Metric Encoder Loader. Compares the subject, paying less "
        "heed to the style of its picture than CLIP does.",
    }
    return [
        io.MultiType.Input(f"{name}_encoder", types=ENCODERS, optional=True, tooltip=tooltip)
        for name, tooltip in parts.items()
    ]


def role_strength(name: str, tooltip: str, default: float = 1.0, **more: Any) -> io.Input:
    """The weight of one role in the guidance."""
    return io.Float.Input(name, default=default, min=0.0, max=10.0, step=0.05, round=0.001, tooltip=tooltip, **more)


def guidance_inputs() -> list[io.Input]:
    """Strengths and window."""
    fraction: dict[str, Any] = {"min": 0.0, "max": 1.0, "step": 0.05, "round": 0.001, "advanced": True}
    return [
        *(
            role_strength(
                f"{role}_strength",
                f"Weight of the {role} in the guidance, relative to the {other}. 0 needs no {role}_image.",
            )
            for role, other in (("subject", "style"), ("style", "subject"))
        ),
        io.Float.Input(
            "guidance_strength",
            default=0.4,
            min=0.0,
            max=0.5,
            step=0.01,
            round=0.001,
            tooltip="How far each guided step moves the predicted picture: the fraction of its own magnitude (RMS). 0 "
            "is plain KSampler; too much paints patterns that please the encoders and nobody else.",
        ),
        io.Float.Input(
            "guidance_start",
            default=0.4,
            **fraction,
            tooltip="Where guidance begins, as a fraction of the steps. Earlier predictions are too blurry to compare.",
        ),
        io.Float.Input(
            "guidance_end",
            default=0.8,
            **fraction,
            tooltip="Where guidance ends, as a fraction of the steps. The rest is left for cleaning up.",
        ),
        io.Int.Input(
            "guidance_every",
            default=6,
            min=1,
            max=100,
            tooltip="Guide every n-th step of the window only: 1 costs most, and then wants a guidance_strength of "
            "about 0.1.",
            advanced=True,
        ),
    ]


def plan_from(
    subject_strength: float,
    style_strength: float,
    guidance_strength: float,
    guidance_start: float,
    guidance_end: float,
    guidance_every: int,
    vae: Any = None,
    subject_image: Any = None,
    style_image: Any = None,
    clip_encoder: Any = None,
    dino_encoder: Any = None,
    references: Any = None,
    held_out_encoder: Any = None,
    prompt_strength: float = 0.0,
    prompt: str = "",
    final_scores: bool = False,
    **options: Any,
) -> GuidancePlan:
    """The plan of the inputs above. Raises ConductorError naming the inputs that contradict each other."""
    try:
        window = GuidanceWindow(guidance_start, guidance_end, guidance_every)
    except ValueError as error:
        raise ConductorError(f"guidance_start, guidance_end, guidance_every: {error}.") from error
    return GuidancePlan(
        subject_strength,
        style_strength,
        guidance_strength,
        window,
        vae,
        subject_image,
        style_image,
        clip_encoder,
        dino_encoder,
        GuidanceOptions(**options, final_scores=final_scores),
        references,
        held_out_encoder,
        prompt_strength,
        prompt,
    )
