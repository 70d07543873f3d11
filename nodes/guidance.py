"""Metric guidance for other packs' chains: as a MODEL, as a GUIDER, as a SAMPLER."""

from __future__ import annotations

import json

from comfy_api.latest import io

from ..host.core import Origin
from ..host.guiding import guided_guider, guided_model, guided_sampler, report_of_latent
from .inputs import CATEGORY, advanced_inputs, guidance_inputs, plan_from, prompt_inputs, reference_inputs, typed

GUIDED = (
    "The same guidance as Metric Guided Sampler's: in the middle of sampling, the picture in the making is compared "
    "with a picture of the subject and a picture of the style, by CLIP and DINO, and nudged towards them. "
)


def _inputs() -> list[io.Input]:
    return [*reference_inputs(), *guidance_inputs(), *advanced_inputs(), *prompt_inputs()]


class MetricGuidance(io.ComfyNode):
    """A MODEL whose sampling runs are guided, whatever samples with it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MetricGuidance",
            display_name="Metric Guidance",
            category=CATEGORY,
            description=GUIDED + "On the model, for any sampler node. Put it last, after LoRAs and other patches.",
            search_aliases=["clip guidance", "dino guidance", "guided model"],
            inputs=[io.Model.Input("model", tooltip="The model to guide."), *_inputs()],
            outputs=[io.Model.Output("MODEL", tooltip="The model; every sampling run with it is guided.")],
        )

    @classmethod
    @typed
    def execute(cls, model, **guidance) -> io.NodeOutput:
        return io.NodeOutput(guided_model(model, plan_from(**guidance)))


class MetricGuidanceGuider(io.ComfyNode):
    """A GUIDER that guides as well, for SamplerCustomAdvanced."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MetricGuidanceGuider",
            display_name="Metric Guidance Guider",
            category=CATEGORY,
            description=GUIDED + "On a guider, for SamplerCustomAdvanced.",
            search_aliases=["guider", "clip guidance", "dino guidance"],
            inputs=[io.Guider.Input("guider", tooltip="Any guider: basic, CFG, dual CFG, ..."), *_inputs()],
            outputs=[io.Guider.Output("GUIDER", tooltip="The guider with metric guidance.")],
        )

    @classmethod
    @typed
    def execute(cls, guider, **guidance) -> io.NodeOutput:
        return io.NodeOutput(guided_guider(guider, plan_from(**guidance)))


class MetricGuidanceSampler(io.ComfyNode):
    """A SAMPLER that guides as well, for SamplerCustom and SamplerCustomAdvanced."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MetricGuidanceSampler",
            display_name="Metric Guidance Sampler",
            category=CATEGORY,
            description=GUIDED + "On a sampler, for SamplerCustom and SamplerCustomAdvanced.",
            search_aliases=["sampler", "clip guidance", "dino guidance"],
            inputs=[io.Sampler.Input("sampler", tooltip="Any sampler, such as KSamplerSelect's."), *_inputs()],
            outputs=[io.Sampler.Output("SAMPLER", tooltip="The sampler with metric guidance.")],
        )

    @classmethod
    @typed
    def execute(cls, sampler, **guidance) -> io.NodeOutput:
        return io.NodeOutput(guided_sampler(sampler, plan_from(**guidance)))


class GuidanceReport(io.ComfyNode):
    """The scores of the last run of a guided MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidanceReport",
            display_name="Guidance Report",
            category=CATEGORY,
            description="What metric guidance did in the last sampling run of a model from Metric Guidance.",
            search_aliases=["guidance scores"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model from Metric Guidance, as it went into the sampler."),
                io.Latent.Input("latent", tooltip="The latent that the sampler made; it tells when the run is over."),
            ],
            outputs=[
                io.Latent.Output("LATENT", tooltip="The latent, unchanged."),
                io.String.Output("scores", tooltip="The run in numbers, as JSON; see Metric Guided Sampler."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def execute(cls, model, latent) -> io.NodeOutput:
        scores = report_of_latent(model, latent["samples"], Origin(cls.hidden.prompt, cls.hidden.unique_id))
        return io.NodeOutput(latent, scores, ui={"text": [scores], "guidance": [json.loads(scores)]})


NODES = [MetricGuidance, MetricGuidanceGuider, MetricGuidanceSampler, GuidanceReport]
