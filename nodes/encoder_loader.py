"""MetricEncoderLoader: an image encoder from an open_clip, timm or transformers checkpoint."""

from __future__ import annotations

import folder_paths
from comfy_api.latest import io

from ..guidance.encoders import FEATURES, LIBRARIES
from ..host.core import chosen, model_path
from ..host.vision import load_metric_encoder
from .inputs import CATEGORY, MetricEncoderType, typed


class MetricEncoderLoader(io.ComfyNode):
    """Loads an image encoder that ComfyUI's own CLIP Vision loader does not know."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MetricEncoderLoader",
            display_name="Metric Encoder Loader",
            category=CATEGORY,
            description=(
                "Loads a CLIP-, SigLIP- or DINO-type image encoder from the clip_vision folder, for "
                "MetricGuidedSampler. For files of open_clip, timm or transformers, which must be installed; models "
                "that Load CLIP Vision can load need nothing of this."
            ),
            search_aliases=["dino", "dinov2", "dinov3", "open_clip", "timm", "siglip", "image encoder", "clip vision"],
            inputs=[
                io.Combo.Input(
                    "encoder_name",
                    options=folder_paths.get_filename_list("clip_vision"),
                    tooltip="Checkpoint in ComfyUI's models/clip_vision folder. A transformers model goes into a "
                    "folder of its own there, together with its config.json.",
                ),
                io.Combo.Input(
                    "library",
                    options=["auto", *LIBRARIES],
                    default="auto",
                    tooltip="The Python library the file was made for. auto: from the file itself.",
                    advanced=True,
                ),
                io.String.Input(
                    "model_name",
                    default="",
                    tooltip="The architecture's name in that library, such as ViT-B-32 (open_clip) or "
                    "vit_small_patch16_dinov3 (timm). Leave empty for files that say it themselves and "
                    "for transformers.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "features",
                    options=list(FEATURES),
                    default=FEATURES[0],
                    optional=True,
                    advanced=True,
                    tooltip="embedding: what the encoder is made for; of CSD files, the style head. content head: "
                    "CSD's other one. gram: which early features occur together, colour and texture with hardly any "
                    "subject; as clip_encoder it compares the style alone.",
                ),
            ],
            outputs=[
                MetricEncoderType.Output(
                    "METRIC_ENCODER", tooltip="The encoder, for clip_encoder or dino_encoder of MetricGuidedSampler."
                )
            ],
        )

    @classmethod
    @typed
    def execute(
        cls, encoder_name: str, library: str = "auto", model_name: str = "", features: str = "embedding"
    ) -> io.NodeOutput:
        chosen(library, ["auto", *LIBRARIES], "library")
        chosen(features, FEATURES, "features")
        path = model_path("clip_vision", encoder_name, "encoder_name:")
        return io.NodeOutput(load_metric_encoder(path, library, model_name.strip(), features))


NODES = [MetricEncoderLoader]
