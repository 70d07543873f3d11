"""ComparePolicies: which way of fusing suits these LoRAs, at one press."""

from __future__ import annotations

import json

from comfy_api.latest import io

from ..host.compare import Judge, best_of, compare, policies_named
from ..host.compare_picture import comparison_picture
from .common import CATEGORY, RoutingPlan
from .guidance_inputs import encoder_inputs
from .sampling_inputs import sampling_inputs


class ComparePolicies(io.ComfyNode):
    """Samples the same prompt by several policies and seeds, and shows and scores the pictures side by side."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        sampling = sampling_inputs()
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
                *(sampling[name] for name in ("positive", "negative", "latent_image")),
                io.String.Input(
                    "policies",
                    default="sum, paper, recommended",
                    tooltip="Names of KLLayerRouter's policies, separated by commas: one row of pictures each.",
                ),
                sampling["seed"],
                io.Int.Input(
                    "seeds",
                    default=2,
                    min=1,
                    max=64,
                    tooltip="How many seeds, counted up from the first: one column of pictures each.",
                ),
                *(sampling[name] for name in ("steps", "cfg", "sampler_name", "scheduler", "denoise")),
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
    return [
        io.Image.Input(
            "subject_image", optional=True, tooltip="Picture of the subject: each cell is compared with it."
        ),
        io.Image.Input("style_image", optional=True, tooltip="Picture in the style: each cell is compared with it."),
        *encoder_inputs(),
    ]


NODES = [ComparePolicies]
