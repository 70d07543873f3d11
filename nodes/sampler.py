"""MetricGuidedSampler: KSampler, steered towards reference pictures by CLIP and DINO similarity."""

from __future__ import annotations

from comfy_api.latest import io

from ..guidance.schedules import GuidanceWindow
from ..host.errors import ConductorError
from ..host.guidance_plan import GuidancePlan
from ..host.guided_sampling import SAMPLER_NAMES, SCHEDULER_NAMES, sample
from .common import CATEGORY
from .encoder_loader import MetricEncoderType


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
            inputs=[*_ksampler_inputs(), *_reference_inputs(), *_guidance_inputs()],
            outputs=[
                io.Latent.Output("LATENT", tooltip="The denoised latent."),
                io.String.Output(
                    "scores",
                    tooltip="JSON: similarity to the references at every guided step and at the end, the size of each "
                    "correction, and the time it took.",
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
        subject_strength: float,
        style_strength: float,
        guidance_strength: float,
        guidance_start: float,
        guidance_end: float,
        guidance_every: int,
        vae=None,
        subject_image=None,
        style_image=None,
        clip_encoder=None,
        dino_encoder=None,
    ) -> io.NodeOutput:
        try:
            window = GuidanceWindow(guidance_start, guidance_end, guidance_every)
        except ValueError as error:
            raise ConductorError(f"guidance_start, guidance_end, guidance_every: {error}.") from error
        plan = GuidancePlan(
            subject_strength,
            style_strength,
            guidance_strength,
            window,
            vae,
            subject_image,
            style_image,
            clip_encoder,
            dino_encoder,
        )
        latent, scores = sample(
            model, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent_image, denoise, plan
        )
        return io.NodeOutput(latent, scores)


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


def _reference_inputs() -> list[io.Input]:
    encoders = [io.ClipVision, MetricEncoderType]
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


def _guidance_inputs() -> list[io.Input]:
    role = {"default": 1.0, "min": 0.0, "max": 10.0, "step": 0.05, "round": 0.001}
    fraction = {"min": 0.0, "max": 1.0, "step": 0.05, "round": 0.001, "advanced": True}
    return [
        io.Float.Input(
            "subject_strength",
            **role,
            tooltip="Weight of the subject in the guidance, relative to the style. 0 needs no subject_image.",
        ),
        io.Float.Input(
            "style_strength",
            **role,
            tooltip="Weight of the style in the guidance, relative to the subject. 0 needs no style_image.",
        ),
        io.Float.Input(
            "guidance_strength",
            default=0.1,
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
            default=1,
            min=1,
            max=100,
            tooltip="Guide every n-th step of the window only: 2 halves the cost.",
            advanced=True,
        ),
    ]


NODES = [MetricGuidedSampler]
