"""The shape of the small world's UNet, and how ComfyUI is told of it."""

from __future__ import annotations

from functools import cache
from typing import Any

CHANNELS, CONTEXT, HEAD = 96, 256, 48
SHAPE: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 16,
    "out_channels": 16,
    "model_channels": CHANNELS,
    "channel_mult": [1, 2],
    "num_res_blocks": [1, 1],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "context_dim": CONTEXT,
    "num_heads": -1,
    "num_head_channels": HEAD,
    "adm_in_channels": None,
    "legacy": False,
    "use_checkpoint": False,
    "use_temporal_resblock": False,
    "use_temporal_attention": False,
}


@cache
def register() -> None:
    """Let ComfyUI's loader know the UNet when it sees its file: it tells those of Stable Diffusion by their width."""
    import comfy.latent_formats
    import comfy.supported_models
    import comfy.supported_models_base

    class SmallUNet(comfy.supported_models_base.BASE):
        unet_config = {"model_channels": CHANNELS, "context_dim": CONTEXT, "in_channels": SHAPE["in_channels"]}
        unet_extra_config = {"num_heads": -1, "num_head_channels": HEAD}
        latent_format = comfy.latent_formats.Flux

        def inpaint_model(self) -> bool:
            return False  # its inputs are sixteen because its latents are

    comfy.supported_models.models.append(SmallUNet)
