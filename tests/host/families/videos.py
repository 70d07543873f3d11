"""Transformer families that make moving pictures, and stills by the same classes."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from .family import Family
from .unets import pooled

HUNYUAN = {
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 24,
    "context_in_dim": 48,
    "hidden_size": 64,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [8, 12, 12],
    "theta": 256,
    "patch_size": [1, 2, 2],
    "qkv_bias": True,
    "guidance_embed": True,
    "byt5": False,
    "meanflow": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
    "meanflow_sum": False,
}
HUNYUAN_15 = {
    "vec_in_dim": None,
    "patch_size": [1, 1, 1],
    "guidance_embed": False,
    "byt5": True,
    "use_cond_type_embedding": True,
    "vision_in_dim": 40,
    "meanflow_sum": True,
    "in_channels": 65,
    "out_channels": 32,
}
COSMOS = {
    "max_img_h": 32,
    "max_img_w": 32,
    "max_frames": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 64,
    "num_blocks": 2,
    "num_heads": 2,
    "crossattn_emb_channels": 48,
    "concat_padding_mask": True,
    "pos_emb_cls": "rope3d",
    "use_adaln_lora": True,
    "adaln_lora_dim": 16,
}
COSMOS_1 = {
    **COSMOS,
    "block_x_format": "THWBD",
    "affline_emb_norm": True,
    "extra_per_block_abs_pos_emb": True,
    "extra_per_block_abs_pos_emb_type": "learnable",
}
COSMOS_2 = {**COSMOS, "pos_emb_learnable": True, "rope_enable_fps_modulation": False}
WAN = {
    "dim": 64,
    "ffn_dim": 96,
    "num_heads": 2,
    "num_layers": 2,
    "freq_dim": 32,
    "text_dim": 48,
    "text_len": 8,
}
COGVIDEO = {
    "num_attention_heads": 3,
    "attention_head_dim": 64,
    "time_embed_dim": 32,
    "text_embed_dim": 48,
    "num_layers": 2,
    "patch_size": 2,
    "sample_width": 8,
    "sample_height": 8,
    "sample_frames": 9,
    "max_text_seq_length": 4,
}
CLIP_VISION_WIDTH = 1280  # the host's, as is the width of the glyphs that ByT5 embeds
BYT5_WIDTH = 1472


def text_and_mask(normal):
    return {"pooled_output": normal(1, 24), "attention_mask": torch.tensor([[1, 1, 1, 0]])}


def glyphs(normal):
    return {"conditioning_byt5small": normal(1, 3, BYT5_WIDTH)}


def glyphs_and_picture(normal):
    return {**glyphs(normal), "pooled_output": None, "clip_vision_output": vision(normal(1, 3, 40))}


def vision(states):
    return SimpleNamespace(penultimate_hidden_states=states, last_hidden_state=states)


def picture(normal):
    return {"clip_vision_output": vision(normal(1, 3, CLIP_VISION_WIDTH))}


KANDINSKY = {
    "in_text_dim": 48,
    "in_text_dim2": 24,
    "time_dim": 32,
    "model_dim": 64,
    "ff_dim": 96,
    "num_text_blocks": 1,
    "num_visual_blocks": 1,
    "axes_dims": (8, 12, 12),
}

VIDEOS = [
    Family(
        "GenmoMochi",
        {
            "depth": 2,
            "patch_size": 2,
            "num_heads": 2,
            "hidden_size_x": 64,
            "hidden_size_y": 32,
            "mlp_ratio_x": 192.0,  # the host asserts the size of the hidden layers
            "mlp_ratio_y": 192.0,
            "learn_sigma": False,
            "in_channels": 12,
            "qk_norm": True,
            "qkv_bias": False,
            "out_bias": True,
            "posenc_preserve_area": True,
            "timestep_scale": 1000.0,
            "use_t5": True,
            "t5_feat_dim": 48,
            "t5_token_length": 4,
        },
        (12, 2, 8, 8),
        (4, 48),
        text_and_mask,
    ),
    Family(
        "LTXV",
        {
            "cross_attention_dim": 64,
            "attention_head_dim": 32,
            "num_attention_heads": 2,
            "caption_channels": 48,
            "num_layers": 2,
        },
        (128, 2, 4, 4),
        (4, 48),
        text_and_mask,
    ),
    Family(
        "LTXAV",
        {
            "cross_attention_dim": 64,
            "audio_cross_attention_dim": 32,
            "attention_head_dim": 32,
            "audio_attention_head_dim": 16,
            "num_attention_heads": 2,
            "audio_num_attention_heads": 2,
            "caption_channels": 48,
            "caption_proj_before_connector": True,
            "connector_attention_head_dim": 32,
            "audio_connector_attention_head_dim": 16,
            "connector_num_attention_heads": 2,
            "connector_num_layers": 1,
            "num_layers": 2,
        },
        ((128, 2, 4, 4), (8, 4, 16)),
        (4, 48),
    ),
    Family("HunyuanVideo", HUNYUAN, (16, 2, 8, 8), (4, 48), text_and_mask),
    Family("HunyuanVideoI2V", {**HUNYUAN, "in_channels": 33}, (16, 2, 8, 8), (4, 48), text_and_mask),
    Family("HunyuanVideoSkyreelsI2V", {**HUNYUAN, "in_channels": 32}, (16, 2, 8, 8), (4, 48), text_and_mask),
    Family("HunyuanVideo15", {**HUNYUAN, **HUNYUAN_15}, (32, 2, 4, 4), (4, 48), glyphs_and_picture),
    Family(
        "HunyuanVideo15_SR_Distilled",
        {**HUNYUAN, **HUNYUAN_15, "in_channels": 98, "meanflow": True},
        (32, 2, 4, 4),
        (4, 48),
        glyphs_and_picture,
    ),
    Family(
        "HunyuanImage21",
        {
            **HUNYUAN,
            "vec_in_dim": None,
            "patch_size": [1, 1],
            "axes_dim": [16, 16],
            "in_channels": 64,
            "out_channels": 64,
            "byt5": True,
            "meanflow": True,
        },
        (64, 4, 4),
        (4, 48),
        glyphs,
    ),
    Family(
        "HunyuanImage21Refiner",
        {**HUNYUAN, "vec_in_dim": None, "patch_size": [1, 1, 1], "in_channels": 128, "out_channels": 64},
        (64, 2, 4, 4),
        (4, 48),
    ),
    Family("CosmosT2V", COSMOS_1, (16, 2, 8, 8), (4, 48)),
    Family("CosmosI2V", COSMOS_1, (16, 2, 8, 8), (4, 48)),
    Family("CosmosT2IPredict2", COSMOS_2, (16, 1, 8, 8), (4, 48)),
    Family("CosmosI2VPredict2", COSMOS_2, (16, 2, 8, 8), (4, 48)),
    Family("WAN21_T2V", WAN, (16, 2, 8, 8), (4, 48)),
    Family("WAN21_I2V", WAN, (16, 2, 8, 8), (4, 48), picture),
    Family("WAN21_FunControl2V", WAN, (16, 2, 8, 8), (4, 48), picture),
    Family("WAN22_T2V", {**WAN, "in_dim": 48}, (48, 2, 8, 8), (4, 48)),
    Family("WAN21_FlowRVS", WAN, (16, 2, 8, 8), (4, 48)),
    Family("WAN21_CausalAR_T2V", WAN, (16, 2, 8, 8), (4, 48)),
    Family("WAN21_Vace", {**WAN, "vace_layers": 1, "vace_in_dim": 96}, (16, 2, 8, 8), (4, 48)),
    Family("CogVideoX_T2V", COGVIDEO, (16, 3, 8, 8), (4, 48)),
    Family("CogVideoX_I2V", {**COGVIDEO, "ofs_embed_dim": 32}, (16, 3, 8, 8), (4, 48)),
    Family("CogVideoX_Inpaint", COGVIDEO, (16, 3, 8, 8), (4, 48)),
    Family("Kandinsky5", {**KANDINSKY, "visual_embed_dim": 132}, (16, 2, 8, 8), (4, 48), pooled(24)),
    Family("Kandinsky5Image", {**KANDINSKY, "visual_embed_dim": 64}, (16, 1, 8, 8), (4, 48), pooled(24)),
    Family(
        "SeedVR2",
        {
            "norm_eps": 1e-5,
            "num_layers": 2,
            "mm_layers": 1,
            "mlp_type": "normal",
            "vid_dim": 64,
            "txt_in_dim": 48,
            "heads": 2,
            "head_dim": 32,
            "rope_dim": 32,
            "vid_out_norm": True,
        },
        (16, 2, 8, 8),
        (4, 48),
        lambda normal: {"condition": normal(1, 17, 2, 8, 8)},
        state=lambda normal: {"positive_conditioning": normal(1), "negative_conditioning": normal(1)},
    ),
]
