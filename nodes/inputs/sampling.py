"""KSampler's inputs, for the nodes that sample."""

from __future__ import annotations

from comfy_api.latest import io

from ...host.core import SAMPLER_NAMES, SCHEDULER_NAMES


def sampling_inputs() -> dict[str, io.Input]:
    """By name, in KSampler's order, with its names, defaults and limits."""
    inputs: list[io.Input] = [
        io.Model.Input("model", tooltip="The model used for denoising the latent."),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="The random seed of the noise.",
        ),
        io.Int.Input("steps", default=20, min=1, max=10000, tooltip="The number of denoising steps."),
        io.Float.Input(
            "cfg",
            default=8.0,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip="Classifier-free guidance: how closely the picture follows the prompt. Too high harms quality.",
        ),
        io.Combo.Input(
            "sampler_name", options=SAMPLER_NAMES, tooltip="The sampling algorithm; affects quality, speed and style."
        ),
        io.Combo.Input("scheduler", options=SCHEDULER_NAMES, tooltip="How noise is removed over the steps."),
        io.Conditioning.Input("positive", tooltip="What the picture should show."),
        io.Conditioning.Input("negative", tooltip="What the picture should not show."),
        io.Latent.Input("latent_image", tooltip="The latent to denoise."),
        io.Float.Input(
            "denoise",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="The amount of denoising; lower values keep the structure of the initial image.",
        ),
    ]
    return {part.id: part for part in inputs}
