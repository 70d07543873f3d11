"""Inputs of every guiding node that most users leave alone."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ...host.guiding import MODES
from ...host.vision import DECODERS
from .guidance import role_strength
from .sockets import ENCODERS, ReferencesType


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
        role_strength(
            "prompt_strength",
            "Weight of the prompt in the guidance, relative to subject and style. Needs a clip_encoder that reads "
            "text: a whole CLIP or SigLIP model from Metric Encoder Loader.",
            default=0.0,
            optional=True,
            advanced=True,
        ),
        io.String.Input(
            "prompt",
            default="",
            optional=True,
            advanced=True,
            tooltip="What the picture should show, in words. Read only while prompt_strength is above 0.",
        ),
    ]
