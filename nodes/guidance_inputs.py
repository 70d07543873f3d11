"""Inputs of every guiding node, and the plan they make."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..guidance.schedules import GuidanceWindow
from ..host.errors import ConductorError
from ..host.guidance_decoders import DECODERS
from ..host.guidance_plan import MODES, GuidanceOptions, GuidancePlan
from .encoder_loader import MetricEncoderType

ReferencesType = io.Custom("GUIDANCE_REFERENCES")
ENCODERS = [io.ClipVision, MetricEncoderType]
ROLE: dict[str, Any] = {"default": 1.0, "min": 0.0, "max": 10.0, "step": 0.05, "round": 0.001}


def reference_inputs() -> list[io.Input]:
    """The VAE, the pictures to compare with and the encoders to compare by."""
    return [
        io.Vae.Input(
            "vae",
            optional=True,
            tooltip="Decodes the picture in the making. Needed for guidance: the VAE that belongs to the model.",
        ),
        io.Image.Input(
            "subject_image",
            optional=True,
            tooltip="Picture of the subject, or several in a batch. Needed while subject_strength is above 0.",
        ),
        io.Image.Input(
            "style_image",
            optional=True,
            tooltip="Picture in the style, or several in a batch. Needed while style_strength is above 0.",
        ),
        io.MultiType.Input(
            "clip_encoder",
            types=ENCODERS,
            optional=True,
            tooltip="CLIP- or SigLIP-type encoder, from Load CLIP Vision or Metric Encoder Loader. Compares the "
            "style, and the subject too if there is no dino_encoder.",
        ),
        io.MultiType.Input(
            "dino_encoder",
            types=ENCODERS,
            optional=True,
            tooltip="DINO-type encoder, from Load CLIP Vision or Metric Encoder Loader. Compares the "
            "subject, paying less heed to the style of its picture than CLIP does.",
        ),
    ]


def guidance_inputs() -> list[io.Input]:
    """Strengths and window."""
    fraction = {"min": 0.0, "max": 1.0, "step": 0.05, "round": 0.001, "advanced": True}
    return [
        io.Float.Input(
            "subject_strength",
            **ROLE,
            tooltip="Weight of the subject in the guidance, relative to the style. 0 needs no subject_image.",
        ),
        io.Float.Input(
            "style_strength",
            **ROLE,
            tooltip="Weight of the style in the guidance, relative to the subject. 0 needs no style_image.",
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
            default=0.2,
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


def advanced_inputs() -> list[io.Input]:
    """All that most users leave alone; optional, so that older workflows go on working."""
    more: dict[str, Any] = {"optional": True, "advanced": True}
    return [
        ReferencesType.Input(
            "references",
            optional=True,
            tooltip="Pictures with masks, or of different sizes, from Guidance References; they go before "
            "subject_image and style_image.",
        ),
        io.MultiType.Input(
            "held_out_encoder",
            types=ENCODERS,
            optional=True,
            tooltip="A third encoder that only watches: where the picture gets less like the references in its eyes "
            "twice in a row, guidance stops.",
        ),
        io.Combo.Input(
            "mode",
            options=list(MODES),
            default="x0",
            tooltip="x0: correct the predicted picture, cheap. paper: the paper's rule, a gradient through the model "
            "at every step, several times the time and memory; strength and window are the paper's own. VP scale: the "
            "same in the other usual coordinates, a much larger step.",
            **more,
        ),
        io.Float.Input(
            "max_displacement",
            default=0.5,
            min=0.01,
            max=2.0,
            step=0.01,
            round=0.001,
            tooltip="No guided step moves the prediction further than this fraction of its magnitude, all inner steps "
            "together.",
            **more,
        ),
        io.Int.Input(
            "inner_steps",
            default=1,
            min=1,
            max=20,
            tooltip="Gradient steps at each guided step, each as costly.",
            **more,
        ),
        io.Int.Input(
            "crops",
            default=0,
            min=0,
            max=32,
            tooltip="Random crops the encoders see besides the whole picture: less noise in the gradient, more time.",
            **more,
        ),
        io.Float.Input(
            "anchor",
            default=0.0,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.001,
            tooltip="With several inner steps: how strongly they are held near the unguided prediction.",
            **more,
        ),
        io.Boolean.Input(
            "adam",
            default=False,
            tooltip="Step along Adam's moments of the gradient, carried from step to step.",
            **more,
        ),
        io.Int.Input(
            "time_travel",
            default=0,
            min=0,
            max=10,
            tooltip="How often each guided step goes back to its noise and is done again, for a model call each.",
            **more,
        ),
        io.Float.Input(
            "paper_step",
            default=10.0,
            min=0.0,
            max=10000.0,
            step=0.1,
            round=0.001,
            tooltip="The paper's step size m. For the paper modes only.",
            **more,
        ),
        io.Combo.Input(
            "decoder",
            options=list(DECODERS),
            default="auto",
            tooltip="How the prediction becomes a picture. auto: the TAESD preview decoder if models/vae_approx has "
            "the model's, else the VAE. latent RGB: no network, colours only.",
            **more,
        ),
        io.Boolean.Input(
            "guard",
            default=True,
            tooltip="Stop guiding when an encoder that does not guide sees the picture get worse twice in a row. Needs "
            "a held_out_encoder, or a second encoder that the strengths leave unused.",
            **more,
        ),
    ]


def prompt_inputs() -> list[io.Input]:
    """A prompt to compare with; a later version's, so at the very end of a node's inputs."""
    return [
        io.Float.Input(
            "prompt_strength",
            **{**ROLE, "default": 0.0},
            optional=True,
            advanced=True,
            tooltip="Weight of the prompt in the guidance, relative to subject and style. Needs a clip_encoder that "
            "reads text: a whole CLIP or SigLIP model from Metric Encoder Loader.",
        ),
        io.String.Input(
            "prompt",
            default="",
            optional=True,
            advanced=True,
            tooltip="What the picture should show, in words. Read only while prompt_strength is above 0.",
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
