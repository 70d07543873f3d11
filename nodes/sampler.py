"""MetricGuidedSampler: KSampler, steered towards reference pictures by CLIP and DINO similarity."""

from __future__ import annotations

import json

from comfy_api.latest import io

from ..host.core import SamplerCall
from ..host.guiding import SOURCES, sample, with_drawn_references
from .inputs import (
    CATEGORY,
    advanced_inputs,
    guidance_inputs,
    plan_from,
    prompt_inputs,
    reference_inputs,
    sampling_inputs,
    typed,
)


class MetricGuidedSampler(io.ComfyNode):
    """KSampler whose predictions are corrected towards a subject picture and a style picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MetricGuidedSampler",
            display_name="Metric Guided Sampler",
            category=CATEGORY,
            description=(
                "KSampler with metric guidance: in the middle of sampling, the picture in the making is compared with "
                "a picture of the subject and a picture of the style, by CLIP and DINO, and nudged towards them. With "
                "guidance_strength 0, or both role strengths 0, it is exactly KSampler."
            ),
            search_aliases=["ksampler", "guided sampler", "clip guidance", "dino guidance", "sample", "reference"],
            inputs=[
                *sampling_inputs().values(),
                *reference_inputs(),
                *guidance_inputs(),
                *advanced_inputs(),
                io.Boolean.Input(
                    "final_scores",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Decode the finished picture once more and add its similarities to the scores.",
                ),
                *_drawing_inputs(),
                *prompt_inputs(),
            ],
            outputs=[
                io.Latent.Output("LATENT", tooltip="The denoised latent."),
                io.String.Output(
                    "scores",
                    tooltip="JSON: similarity to the references at every guided step, the size of each correction, the "
                    "time it took, and what was given up for lack of memory.",
                ),
            ],
        )

    @classmethod
    @typed
    def execute(
        cls,
        model,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        positive,
        negative,
        latent_image: dict,
        denoise: float,
        references_from: str = SOURCES[0],
        subject_positive=None,
        style_positive=None,
        **guidance,
    ) -> io.NodeOutput:
        plan = plan_from(**guidance)
        call = SamplerCall(seed, steps, cfg, sampler_name, scheduler, positive, negative, latent_image, denoise)
        if references_from != SOURCES[0] and not plan.is_off:
            positives = {"subject": subject_positive, "style": style_positive}
            plan = with_drawn_references(plan, model, call, positives)
        latent, scores = sample(model, call, plan)
        return io.NodeOutput(latent, scores, ui={"guidance": [json.loads(scores)]})


def _drawing_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "references_from",
            options=list(SOURCES),
            default=SOURCES[0],
            optional=True,
            advanced=True,
            tooltip="each LoRA alone: a role without a picture gets one, drawn by its LoRA alone with these settings, "
            "once for the same settings. Needs a model from Dual LoRA Dynamic Loader.",
        ),
        io.Conditioning.Input(
            "subject_positive", optional=True, tooltip="The prompt for the reference that the subject LoRA draws."
        ),
        io.Conditioning.Input(
            "style_positive", optional=True, tooltip="The prompt for the reference that the style LoRA draws."
        ),
    ]


NODES = [MetricGuidedSampler]
