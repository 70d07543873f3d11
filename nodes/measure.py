"""MeasureMyPair: what fusing does to the user's own two LoRAs, in figures and by a blind vote."""

from __future__ import annotations

import json

from comfy_api.latest import io

from ..host.comparing import (
    ballot_of,
    eyes_of,
    measure_pair,
    pair_figures,
    pair_pictures,
    pair_report,
    pair_sheet,
    pair_verdict,
)
from ..host.core import SamplerCall
from .inputs import CATEGORY, ENCODERS, ReferencesType, sampling_inputs, typed

SEEDS = 2**64  # there are; after the last comes the first
SAMPLING = ("steps", "cfg", "sampler_name", "scheduler", "denoise")


class MeasureMyPair(io.ComfyNode):
    """Samples each seed without LoRAs, by each LoRA alone, stacked and fused; measures them and asks for votes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        sampling = sampling_inputs()
        return io.Schema(
            node_id="MeasureMyPair",
            display_name="Measure My Pair",
            category=CATEGORY,
            description=(
                "How well your own two LoRAs share a picture: each seed without LoRAs, with either alone, stacked, and "
                "fused as the model is set. Says how much of subject and style arrives, what is burnt and what to "
                "turn; then you vote blind on the node."
            ),
            search_aliases=["evaluate loras", "blind test", "a/b vote", "lora benchmark", "compare loras"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="A model with a subject and a style LoRA of DualLoRADynamicLoader."),
                io.Vae.Input("vae", tooltip="Decodes the pictures."),
                *(sampling[name] for name in ("positive", "negative", "latent_image", "seed")),
                io.Int.Input(
                    "seeds",
                    default=4,
                    min=1,
                    max=64,
                    tooltip="How many seeds, counted up from the first; five pictures each. Fewer than 4 say little.",
                ),
                *(sampling[name] for name in SAMPLING),
                *_encoder_inputs(),
                io.Image.Input(
                    "subject_image",
                    optional=True,
                    tooltip="Pictures of the subject to compare with. Without them: what the subject LoRA draws alone.",
                ),
                io.Image.Input(
                    "style_image",
                    optional=True,
                    tooltip="Pictures in the style to compare with. Without them: what the style LoRA draws alone.",
                ),
                ReferencesType.Input(
                    "references", optional=True, tooltip="From Guidance References; they go before the two images."
                ),
            ],
            outputs=[
                io.Image.Output("sheet", tooltip="All pictures with their figures, seeds down; the verdict below."),
                io.Image.Output(
                    "pictures",
                    tooltip="Every picture, seed by seed: no LoRA, subject alone, style alone, stacked, fused.",
                ),
                io.String.Output("report", tooltip="Verdict, what to turn next, and the figures in words."),
                io.String.Output("figures", tooltip="Everything that was measured, as JSON."),
            ],
        )

    @classmethod
    @typed
    def execute(
        cls,
        model,
        vae,
        positive,
        negative,
        latent_image: dict,
        seed: int,
        seeds: int,
        subject_encoder=None,
        style_encoder=None,
        subject_image=None,
        style_image=None,
        references=None,
        **sampling,
    ) -> io.NodeOutput:
        encoders = {"subject": subject_encoder, "style": style_encoder}
        eyes = eyes_of(encoders, {"subject": subject_image, "style": style_image}, references)
        call = SamplerCall(seed=seed, positive=positive, negative=negative, latent_image=latent_image, **sampling)
        every = [(seed + place) % SEEDS for place in range(seeds)]
        pair = measure_pair(model, call, every, vae, eyes)
        report = pair_report(pair, call.cfg)
        return io.NodeOutput(
            pair_sheet(pair, pair_verdict(pair, call.cfg)),
            pair_pictures(pair),
            report,
            json.dumps(pair_figures(pair)),
            ui={"text": [report], "ballot": [ballot_of(pair, call)]},
        )


def _encoder_inputs() -> list[io.Input]:
    whose = {
        "subject": "DINO-type encoder by which pictures are compared with the subject",
        "style": "CLIP-type or CSD encoder by which pictures are compared with the style",
    }
    return [
        io.MultiType.Input(
            f"{role}_encoder",
            types=ENCODERS,
            optional=True,
            tooltip=f"{what}, from Metric Encoder Loader or Load CLIP Vision; one that does not guide this model. "
            "Without it this likeness is not measured.",
        )
        for role, what in whose.items()
    ]


NODES = [MeasureMyPair]
