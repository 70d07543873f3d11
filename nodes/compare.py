"""ComparePolicies: which way of fusing suits these LoRAs, at one press."""

from __future__ import annotations

import json

import comfy.samplers
from comfy_api.latest import io

from ..host.compare import Judge, best_of, compare, policies_named
from ..host.compare_picture import comparison_picture
from .common import CATEGORY, RoutingPlan
from .encoder_loader import MetricEncoderType


class ComparePolicies(io.ComfyNode):
    """Samples the same prompt by several policies and seeds, and shows and scores the pictures side by side."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ComparePolicies",
            display_name="Compare Policies",
            category=CATEGORY,
            description=(
                "Samples the same picture by several policies and seeds and lays the results side by side, with "
                "scores under each. Give the plan of the best one to KLLayerRouter, or set the policy that won."
            ),
            search_aliases=["xy plot", "lora grid", "compare loras", "policy grid"],
            inputs=[
                io.Model.Input("model", tooltip="A model with the LoRAs of DualLoRADynamicLoader."),
                io.Vae.Input("vae", tooltip="Decodes the pictures."),
                io.Conditioning.Input("positive", tooltip="What the picture should show."),
                io.Conditioning.Input("negative", tooltip="What the picture should not show."),
                io.Latent.Input("latent_image", tooltip="The latent to denoise."),
                io.String.Input(
                    "policies",
                    default="sum, paper, recommended",
                    tooltip="Names of KLLayerRouter's policies, separated by commas: one row of pictures each.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The random seed of the noise.",
                ),
                io.Int.Input(
                    "seeds",
                    default=2,
                    min=1,
                    max=64,
                    tooltip="How many seeds, counted up from the first: one column of pictures each.",
                ),
                io.Int.Input("steps", default=20, min=1, max=10000, tooltip="The number of denoising steps."),
                io.Float.Input(
                    "cfg",
                    default=8.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Classifier-free guidance: how closely the picture follows the prompt. Too high harms "
                    "quality.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=comfy.samplers.KSampler.SAMPLERS,
                    tooltip="The sampling algorithm; affects quality, speed and style.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.KSampler.SCHEDULERS,
                    tooltip="How noise is removed over the steps.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="The amount of denoising; lower values keep the structure of the initial image.",
                ),
                *_judging_inputs(),
            ],
            outputs=[
                io.Image.Output("grid", tooltip="Policies down, seeds across; the best cell is framed."),
                io.String.Output("scores", tooltip="JSON: similarities and subject's share of every cell."),
                RoutingPlan.Output("plan", tooltip="The plan of the best cell, for KLLayerRouter."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        vae,
        positive,
        negative,
        latent_image: dict,
        policies: str,
        seed: int,
        seeds: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        denoise: float,
        subject_image=None,
        style_image=None,
        clip_encoder=None,
        dino_encoder=None,
    ) -> io.NodeOutput:
        judge = Judge({"subject": subject_image, "style": style_image}, clip_encoder, dino_encoder)
        sampling = {
            "steps": steps,
            "cfg": cfg,
            "sampler_name": sampler_name,
            "scheduler": scheduler,
            "positive": positive,
            "negative": negative,
            "latent": latent_image,
            "denoise": denoise,
        }
        cells = compare(model, policies_named(policies), range(seed, seed + seeds), sampling, vae, judge)
        best = best_of(cells)
        rows = [
            {"policy": c.policy, "seed": c.seed, "scores": c.scores, "subject_share": c.share, "best": c is best}
            for c in cells
        ]
        return io.NodeOutput(comparison_picture(cells, best), json.dumps(rows), best.plan)


def _judging_inputs() -> list[io.Input]:
    encoders = [io.ClipVision, MetricEncoderType]
    return [
        io.Image.Input(
            "subject_image", optional=True, tooltip="Picture of the subject: each cell is compared with it."
        ),
        io.Image.Input("style_image", optional=True, tooltip="Picture in the style: each cell is compared with it."),
        io.MultiType.Input(
            "clip_encoder",
            types=encoders,
            optional=True,
            tooltip="CLIP- or SigLIP-type encoder, from Load CLIP Vision or Metric Encoder Loader. Compares the "
            "style, and the subject too if there is no dino_encoder.",
        ),
        io.MultiType.Input(
            "dino_encoder",
            types=encoders,
            optional=True,
            tooltip="DINO-type encoder, from Load CLIP Vision or Metric Encoder Loader. Compares the "
            "subject, paying less heed to the style of its picture than CLIP does.",
        ),
    ]


NODES = [ComparePolicies]
