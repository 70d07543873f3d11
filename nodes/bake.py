"""BakeFusedLoRA: what the routing made of several LoRAs, as one ordinary LoRA file."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..host.baking import BakeSettings, bake_to_file
from ..host.core import Origin, chosen, printable
from .inputs import CATEGORY, typed

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
AVERAGE, ONE_STEP = "average", "one step"


class BakeFusedLoRA(io.ComfyNode):
    """Writes the fused LoRAs on a model as an ordinary LoRA file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BakeFusedLoRA",
            display_name="Bake Fused LoRA",
            category=CATEGORY,
            description=(
                "Writes what the routing made of the LoRAs as one ordinary LoRA file that any program loads, at "
                "strength 1. A file cannot change from step to step: it holds the mean over the steps, or one step."
            ),
            search_aliases=["save lora", "merge loras", "export lora", "extract lora", "combine loras"],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="The model with the LoRAs, the same that the sampler used."),
                io.Combo.Input(
                    "steps",
                    options=[AVERAGE, ONE_STEP],
                    default=AVERAGE,
                    tooltip="Which weights are written: their mean over all steps, or those of one step. Fixed merges "
                    "(sum, ties ...) have no steps.",
                ),
                io.Int.Input(
                    "step",
                    default=1,
                    min=1,
                    max=10000,
                    tooltip="The step of 'one step', counted from 1 as the progress bar does. 'average' ignores it.",
                ),
                io.Int.Input(
                    "rank",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="The most a layer may have. 0 keeps everything: at most the ranks of the LoRAs added up, "
                    "but full rank for merges like ties or dare. The report says what a lower rank loses.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    default="fp16",
                    tooltip="Number format of the file. fp16 is the custom; fp32 doubles the size and is exact.",
                    advanced=True,
                ),
                io.String.Input(
                    "filename_prefix",
                    default="loras/fused",
                    tooltip="Below ComfyUI's output folder. LoRA loaders find what lies in its folder loras.",
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="The latent that the sampler made with this model: says what was decided. Only fixed "
                    "merges (sum, ties ...) do without it.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The loader's CLIP, if the LoRAs trained a text encoder: its parts are written too.",
                ),
                io.Float.Input(
                    "energy",
                    default=1.0,
                    min=0.5,
                    max=1.0,
                    step=0.005,
                    optional=True,
                    advanced=True,
                    tooltip="Of changes that are not low-rank (DoRA, LoKr, OFT, ties, dare ...), the share of energy "
                    "to keep. 1 keeps all, in files many times as large as the LoRAs.",
                ),
            ],
            outputs=[
                io.String.Output("file", tooltip="The file, as LoRA loaders list it."),
                io.String.Output("report", tooltip="What was written, what the rank lost, and what is left out."),
            ],
        )

    @classmethod
    @typed
    def execute(
        cls,
        model,
        steps: str,
        step: int,
        rank: int,
        dtype: str,
        filename_prefix: str,
        latent=None,
        clip=None,
        energy: float = 1.0,
    ) -> io.NodeOutput:
        one = chosen(steps, (AVERAGE, ONE_STEP), "steps") == ONE_STEP
        hidden = cls.hidden
        origin = Origin(hidden.prompt, hidden.unique_id)
        kept = DTYPES[chosen(dtype, DTYPES, "dtype")]
        settings = BakeSettings(step - 1 if one else None, rank, kept, origin, energy)
        samples = latent["samples"] if latent is not None else None
        file, report = bake_to_file(
            model, clip, samples, settings, filename_prefix, hidden.prompt, hidden.extra_pnginfo
        )
        report = printable(report)
        return io.NodeOutput(file.name or str(file.path), report, ui={"text": [report]})


NODES = [BakeFusedLoRA]
