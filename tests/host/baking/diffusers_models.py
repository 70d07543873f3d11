"""What diffusers has for each family of models: who loads its files, and the model that they are for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

UNET = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "cross_attention_dim": 48,
}


@dataclass(frozen=True)
class Known:
    """What diffusers has for a family.

    Attributes:
        mixin: class in ``diffusers.loaders.lora_pipeline`` that converts and loads files; "" for none.
        model: its class of model.
        config: that makes it as deep as the family's small model; its other sizes do not matter for names.
        without: parts of the model's own names of layers that diffusers has no name for in a file, with the reason.
        least: the share of the layers that a dialect names, if files of the family come in it.
        wide: for the family's small model: sizes that the converters take for granted.
    """

    mixin: str
    model: str
    config: dict[str, Any]
    without: dict[str, str] = field(default_factory=dict)
    wide: dict[str, Any] = field(default_factory=dict)
    least: float = 0.5


OUTSIDE = "its converter knows the layers of blocks alone"
ADM = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 1568,
}
TWO = {"num_layers": 2}
WIDE = {"hidden_size": 3072, "num_heads": 24, "axes_dim": [16, 56, 56]}
WAN = {"patch_embedding": OUTSIDE, "vace": OUTSIDE}

DIFFUSERS: dict[str, Known] = {
    "SD15": Known("StableDiffusionLoraLoaderMixin", "UNet2DConditionModel", UNET),
    "SD20": Known("StableDiffusionLoraLoaderMixin", "UNet2DConditionModel", UNET),
    "SDXL": Known("StableDiffusionXLLoraLoaderMixin", "UNet2DConditionModel", {**UNET, **ADM}),
    "SD3": Known(
        "SD3LoraLoaderMixin",
        "SD3Transformer2DModel",
        {**TWO, "dual_attention_layers": (0,), "qk_norm": "rms_norm"},
    ),
    "AuraFlow": Known(
        "AuraFlowLoraLoaderMixin", "AuraFlowTransformer2DModel", {"num_mmdit_layers": 1, "num_single_dit_layers": 1}
    ),
    "PixArtAlpha": Known("", "PixArtTransformer2DModel", {**TWO, "caption_channels": 48, "sample_size": 128}),
    "PixArtSigma": Known("", "PixArtTransformer2DModel", {**TWO, "caption_channels": 48, "sample_size": 64}),
    "Flux": Known(
        "FluxLoraLoaderMixin",
        "FluxTransformer2DModel",
        {"num_layers": 1, "num_single_layers": 1, "guidance_embeds": True},
        wide=WIDE,
    ),
    "LongCatImage": Known(
        "FluxLoraLoaderMixin",
        "LongCatImageTransformer2DModel",
        {"num_layers": 1, "num_single_layers": 1},
        {"time_in": "named otherwise than in core's map"},
        wide=WIDE,
    ),
    "Chroma": Known(
        "FluxLoraLoaderMixin",
        "ChromaTransformer2DModel",
        {"num_layers": 1, "num_single_layers": 1},
        {"distilled_guidance": OUTSIDE},
        wide=WIDE,
    ),
    "Flux2": Known("Flux2LoraLoaderMixin", "Flux2Transformer2DModel", {"num_layers": 1, "num_single_layers": 1}),
    "Lumina2": Known(
        "Lumina2LoraLoaderMixin",
        "Lumina2Transformer2DModel",
        {**TWO, "num_refiner_layers": 1},
        {"embedder": OUTSIDE, "final_layer": OUTSIDE, "clip_text": OUTSIDE, "time_text": OUTSIDE},
        least=0.9,
        wide={"dim": 2304, "n_heads": 24, "n_kv_heads": 8, "axes_dims": [32, 32, 32]},
    ),
    "ZImage": Known("ZImageLoraLoaderMixin", "ZImageTransformer2DModel", {"n_layers": 2, "n_refiner_layers": 1}),
    "QwenImage": Known("QwenImageLoraLoaderMixin", "QwenImageTransformer2DModel", TWO),
    "HiDream": Known(
        "HiDreamImageLoraLoaderMixin",
        "HiDreamImageTransformer2DModel",
        {
            "num_layers": 1,
            "num_single_layers": 1,
            "patch_size": 2,
            "llama_layers": [0, 1, 1],
            "caption_channels": [48, 48],
            "text_emb_dim": 24,
            "num_routed_experts": 2,
            "num_activated_experts": 1,
        },
    ),
    "Krea2": Known("Krea2LoraLoaderMixin", "Krea2Transformer2DModel", {}),
    "Ideogram4": Known(
        "Ideogram4LoraLoaderMixin",
        "Ideogram4Transformer2DModel",
        TWO,
        {part: OUTSIDE for part in ("input_proj", "llm_cond_proj", "t_embedding", "adaln_proj", "final_layer")},
    ),
    "ErnieImage": Known("ErnieImageLoraLoaderMixin", "ErnieImageTransformer2DModel", TWO),
    "LTXV": Known(
        "LTXVideoLoraLoaderMixin", "LTXVideoTransformer3DModel", TWO, {"patchify": OUTSIDE, "adaln_single": OUTSIDE}
    ),
    "LTXAV": Known(
        "LTX2LoraLoaderMixin",
        "LTX2VideoTransformer3DModel",
        TWO,
        {"embeddings_connector": "another model there, whose names its converter does not know"},
    ),
    "HunyuanVideo": Known(
        "HunyuanVideoLoraLoaderMixin",
        "HunyuanVideoTransformer3DModel",
        {**TWO, "num_single_layers": 2, "num_refiner_layers": 2},
        {part: OUTSIDE for part in ("img_in", "txt_in", "time_in", "vector_in", "guidance_in", "final_layer")},
        wide=WIDE,
    ),
    "WAN21_T2V": Known("WanLoraLoaderMixin", "WanTransformer3DModel", TWO, WAN),
    "WAN21_I2V": Known(
        "WanLoraLoaderMixin", "WanTransformer3DModel", {**TWO, "image_dim": 1280, "added_kv_proj_dim": 5120}, WAN
    ),
    "WAN21_Vace": Known("WanLoraLoaderMixin", "WanVACETransformer3DModel", {**TWO, "vace_layers": (0,)}, WAN),
    "Kandinsky5Image": Known(
        "KandinskyLoraLoaderMixin", "Kandinsky5Transformer3DModel", {"num_text_blocks": 2, "num_visual_blocks": 2}
    ),
    "Anima": Known("AnimaLoraLoaderMixin", "CosmosTransformer3DModel", TWO),
    "ACEStep15": Known(
        "AceStepLoraLoaderMixin",
        "AceStepTransformer1DModel",
        {"num_hidden_layers": 2},
        {part: OUTSIDE for part in ("encoder", "tokenizer", "proj_in", "proj_out", "embed", "null")},
    ),
    "MiniMaxH3": Known("MiniMaxH3LoraLoaderMixin", "MiniMaxH3Transformer3DModel", TWO),
}
