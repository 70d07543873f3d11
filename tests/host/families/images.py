"""Transformer families that make pictures."""

from __future__ import annotations

import torch

from .family import Family
from .unets import pooled

FLUX = {
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 24,
    "context_in_dim": 48,
    "hidden_size": 64,
    "mlp_ratio": 4.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [8, 12, 12],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "txt_ids_dims": [],
}
FLUX2 = {
    "in_channels": 128,
    "out_channels": 128,
    "vec_in_dim": None,
    "mlp_ratio": 3.0,
    "axes_dim": [8, 8, 8, 8],
    "theta": 2000,
    "patch_size": 1,
    "qkv_bias": False,
    "ops_bias": False,
    "guidance_embed": True,
    "global_modulation": True,
    "mlp_silu_act": True,
    "default_ref_method": "index",
    "ref_index_scale": 10.0,
    "txt_ids_dims": [3],
}
CHROMA = {"in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 64, "hidden_dim": 32, "n_layers": 1}
LUMINA = {
    "patch_size": 2,
    "in_channels": 16,
    "dim": 96,
    "cap_feat_dim": 48,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 4,
    "n_kv_heads": 2,
    "multiple_of": 32,
    "qk_norm": True,
    "axes_dims": [8, 8, 8],
    "axes_lens": [300, 512, 512],
    "rope_theta": 10000.0,
    "ffn_dim_multiplier": 1.0,
}
Z_IMAGE = {
    "dim": 256,
    "axes_dims": [16, 24, 24],
    "n_kv_heads": 4,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}
QWEN = {
    "in_channels": 64,
    "num_layers": 2,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": 48,
    "axes_dims_rope": (8, 12, 12),
}
PIXART = {
    "input_size": 128,
    "patch_size": 2,
    "in_channels": 4,
    "hidden_size": 96,
    "depth": 2,
    "num_heads": 4,
    "caption_channels": 48,
    "model_max_length": 8,
    "pe_interpolation": 2,
}
HYDIT = {"hidden_size": 64, "depth": 4, "num_heads": 2, "text_states_dim": 48, "text_states_dim_t5": 40}


def sizes(normal):
    return {"width": 128, "height": 64}


def masked(normal):
    return {"attention_mask": torch.tensor([[1, 1, 1, 0]])}


def two_texts(normal):
    mask = torch.tensor([[1, 1, 1, 0]])
    return {
        "attention_mask": mask,
        "attention_mask_mt5xl": torch.cat([mask, mask], dim=1),
        "conditioning_mt5xl": normal(1, 8, 40),
    }


IMAGES = [
    Family(
        "SD3",
        {
            "in_channels": 16,
            "out_channels": 16,
            "patch_size": 2,
            "depth": 2,
            "input_size": None,
            "adm_in_channels": 24,
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": 48, "out_features": 128},
            },
            "num_patches": 64,
            "pos_embed_max_size": 8,
            "qk_norm": "rms",
            "x_block_self_attn_layers": [0],
        },
        (16, 8, 8),
        (4, 48),
        pooled(24),
        buffers=("pos_embed",),
    ),
    Family(
        "AuraFlow",
        {"dim": 128, "n_layers": 2, "n_double_layers": 1, "n_heads": 2, "global_conddim": 128, "cond_seq_dim": 48},
        (4, 8, 8),
        (4, 48),
    ),
    Family("PixArtAlpha", {**PIXART, "micro_condition": True}, (4, 40, 36), (8, 48), sizes),
    Family("PixArtSigma", {**PIXART, "micro_condition": False}, (4, 40, 36), (8, 48)),
    Family("HunyuanDiT", {**HYDIT, "text_len": 4, "text_len_t5": 8}, (4, 8, 8), (4, 48), two_texts),
    Family(
        "HunyuanDiT1",
        {**HYDIT, "text_len": 4, "text_len_t5": 8, "size_cond": True, "use_style_cond": True},
        (4, 8, 8),
        (4, 48),
        two_texts,
    ),
    Family("Flux", FLUX, (16, 8, 8), (4, 48), pooled(24)),
    Family("FluxInpaint", {**FLUX, "in_channels": 96}, (16, 8, 8), (4, 48), pooled(24)),
    Family("FluxSchnell", FLUX, (16, 8, 8), (4, 48), pooled(24)),
    Family("LongCatImage", {**FLUX, "vec_in_dim": None, "txt_ids_dims": [1, 2]}, (16, 8, 8), (4, 48)),
    Family("Flux2", {**FLUX, **FLUX2}, (128, 4, 4), (4, 48), pooled(24)),
    Family("Chroma", {**FLUX, **CHROMA, "vec_in_dim": None}, (16, 8, 8), (4, 48), pooled(24)),
    Family("Lumina2", {**LUMINA, "clip_text_dim": 24}, (16, 8, 8), (4, 48), pooled(24)),
    Family("ZImage", {**LUMINA, **Z_IMAGE}, (16, 8, 8), (4, 48)),
    Family("QwenImage", QWEN, (16, 1, 8, 8), (4, 48), masked),
    Family("MageFlow", {**QWEN, "in_channels": 128}, (128, 4, 4), (4, 48)),
    Family(
        "HiDream",
        {
            "attention_head_dim": 32,
            "axes_dims_rope": [16, 8, 8],
            "caption_channels": [48, 48],
            "max_resolution": [16, 16],
            "in_channels": 16,
            "out_channels": 16,
            "llama_layers": [0, 1, 1],
            "num_attention_heads": 2,
            "num_routed_experts": 2,
            "num_activated_experts": 1,
            "num_layers": 1,
            "num_single_layers": 1,
            "patch_size": 2,
            "text_emb_dim": 24,
        },
        (16, 8, 8),
        (4, 48),
        lambda normal: {"pooled_output": normal(1, 24), "conditioning_llama3": normal(1, 2, 4, 48)},
    ),
]
