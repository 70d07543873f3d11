"""MetricGuidedSampler: KSampler, steered towards reference pictures by CLIP and DINO similarity."""

from __future__ import annotations

import json

from comfy_api.latest import io

from ..host.guided_sampling import SAMPLER_NAMES, SCHEDULER_NAMES, sample
from ..host.solo_references import SOURCES, SamplerCall, with_drawn_references
from .common import CATEGORY
from .guidance_inputs import advanced_inputs, guidance_inputs, plan_from, reference_inputs


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
                *_ksampler_inputs(),
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
        if references_from != SOURCES[0] and not plan.is_off:
            call = SamplerCall(seed, steps, cfg, sampler_name, scheduler, positive, negative, latent_image)
            positives = {"subject": subject_positive, "style": style_positive}
            plan = with_drawn_references(plan, model, call, positives)
        latent, scores = sample(
            model, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent_image, denoise, plan
        )
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


def _ksampler_inputs() -> list[io.Input]:
    return [
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


NODES = [MetricGuidedSampler]
