"""Transformer families that make pictures in pixels, and those that came after the ones in ``images``."""

from __future__ import annotations

import torch

from .family import Family
from .images import CHROMA, FLUX, LUMINA, Z_IMAGE

RADIANCE = {
    "in_channels": 3,
    "out_channels": 3,
    "patch_size": 4,
    "nerf_hidden_size": 16,
    "nerf_mlp_ratio": 2,
    "nerf_depth": 1,
    "nerf_max_freqs": 4,
    "nerf_tile_size": 0,
    "nerf_final_head_type": "conv",
    "nerf_embedder_dtype": torch.float32,
    "use_x0": False,
    "use_sequential_txt_ids": False,
}
PIXEL = {
    "num_groups": 2,
    "hidden_size": 64,
    "pixel_hidden_size": 16,
    "pixel_attn_hidden_size": 64,
    "pixel_num_groups": 2,
    "patch_depth": 2,
    "pixel_depth": 1,
    "patch_size": 8,
    "txt_embed_dim": 48,
    "txt_max_length": 8,
}
OMNIGEN = {
    "hidden_size": 96,
    "num_attention_heads": 4,
    "num_kv_heads": 2,
    "num_layers": 2,
    "num_refiner_layers": 1,
    "multiple_of": 32,
    "axes_dim_rope": (8, 8, 8),
    "in_channels": 16,
    "patch_size": 2,
    "timestep_scale": 1000.0,
}


def reference(normal):
    return {"attention_mask": torch.ones(1, 4, dtype=torch.int64), "reference_latents": [normal(1, 16, 8, 8)]}


MORE_IMAGES = [
    Family(
        "ChromaRadiance",
        {**FLUX, **CHROMA, **RADIANCE, "vec_in_dim": None},
        (3, 16, 16),
        (4, 48),
        since=(0, 24),
    ),
    Family(
        "ZImagePixelSpace",
        {
            **LUMINA,
            **Z_IMAGE,
            "in_channels": 3,
            "patch_size": 4,
            "decoder_in_channels": 48,
            "decoder_hidden_size": 32,
            "decoder_num_res_blocks": 1,
            "decoder_max_freqs": 4,
        },
        (3, 16, 16),
        (4, 48),
    ),
    Family("PixelDiTT2I", PIXEL, (3, 32, 32), (8, 48)),
    Family(
        "PiD",
        {**PIXEL, "lq_latent_channels": 4, "lq_hidden_dim": 16, "lq_num_res_blocks": 1, "lq_interval": 1},
        (3, 64, 64),
        (8, 48),
        lambda normal: {"lq_latent": normal(1, 4, 2, 2), "degrade_sigma": torch.tensor([0.3])},
    ),
    Family("Omnigen2", {**OMNIGEN, "text_feat_dim": 48}, (16, 8, 8), (4, 48), reference),
    Family(
        "Boogu",
        {**OMNIGEN, "num_double_stream_layers": 1, "instruction_feat_dim": 48},
        (16, 8, 8),
        (4, 48),
        reference,
    ),
    Family(
        "Lens",
        {
            "in_channels": 128,
            "out_channels": 32,
            "num_layers": 1,
            "attention_head_dim": 32,
            "num_attention_heads": 2,
            "enc_hidden_dim": 24,
            "axes_dims_rope": (8, 12, 12),
            "selected_layer_index": (0, 1),
        },
        (128, 4, 4),
        (4, 48),
    ),
    Family(
        "JoyImage",
        {
            "in_channels": 16,
            "hidden_size": 64,
            "num_attention_heads": 2,
            "text_dim": 48,
            "num_layers": 1,
            "rope_dim_list": [8, 12, 12],
        },
        (16, 1, 8, 8),
        (4, 48),
    ),
    Family(
        "Ideogram4",
        {
            "num_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 32,
            "intermediate_size": 64,
            "adaln_dim": 32,
            "llm_features_dim": 48,
            "mrope_section": (6, 5, 5),
        },
        (128, 4, 4),
        (4, 48),
    ),
    Family(
        "Krea2",
        {
            "features": 64,
            "tdim": 32,
            "txtdim": 24,
            "heads": 2,
            "kvheads": 1,
            "multiplier": 2,
            "layers": 1,
            "txtlayers": 2,
            "txtheads": 2,
            "txtkvheads": 2,
        },
        (16, 1, 8, 8),
        (4, 48),
    ),
    Family(
        "ErnieImage",
        {
            "hidden_size": 64,
            "num_attention_heads": 2,
            "num_layers": 1,
            "ffn_hidden_size": 96,
            "text_in_dim": 48,
            "rope_axes_dim": (8, 12, 12),
        },
        (128, 4, 4),
        (4, 48),
    ),
]
