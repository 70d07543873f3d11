"""Families that make sound or shapes, and those with parts that the host builds in one size only."""

from __future__ import annotations

import comfy.ldm.ace.lyric_encoder
import comfy.ldm.anima.model
import comfy.ldm.audio.embedders
import comfy.ops
import torch

from .family import Family
from .videos import COSMOS_2

AUDIO = {
    "io_channels": 64,
    "embed_dim": 128,
    "depth": 2,
    "num_heads": 2,
    "cond_token_dim": 768,
    "project_cond_tokens": True,
    "global_cond_dim": 1536,
    "timestep_features_type": "learned",
}
HUNYUAN_3D = {"context_in_dim": 48, "hidden_size": 64, "num_heads": 2, "depth": 1, "depth_single_blocks": 1}


def seconds(*names, **kind):
    """The number embedders of Stable Audio, which its checkpoints hold beside the diffusion model."""

    def state(normal):
        shapes = comfy.ldm.audio.embedders.NumberConditioner(768, min_val=0, max_val=512, **kind).state_dict()
        return {
            f"conditioner.conditioners.{name}.{key}": normal(*value.shape)
            for name in names
            for key, value in shapes.items()
        }

    return state


def small_lyrics(model, dtype):
    model.diffusion_model.lyric_encoder = comfy.ldm.ace.lyric_encoder.ConformerEncoder(
        input_size=32,
        output_size=32,
        attention_heads=2,
        linear_units=48,
        num_blocks=1,
        static_chunk_size=0,
        dtype=dtype,
        operations=comfy.ops.manual_cast,
    )


def small_adapter(model, dtype):
    model.diffusion_model.llm_adapter = comfy.ldm.anima.model.LLMAdapter(
        source_dim=48,
        target_dim=48,
        model_dim=48,
        num_layers=1,
        num_heads=2,
        dtype=dtype,
        operations=comfy.ops.manual_cast,
    )


OTHERS = [
    Family(
        "StableAudio",
        AUDIO,
        (64, 16),
        (4, 768),
        state=seconds("seconds_start", "seconds_total"),
        buffers=("transformer.rotary_pos_emb.inv_freq",),
        since=(0, 24),
    ),
    Family(
        "ACEStep",
        {
            "in_channels": 8,
            "out_channels": 8,
            "inner_dim": 64,
            "attention_head_dim": 32,
            "num_attention_heads": 2,
            "num_layers": 2,
            "mlp_ratio": 2.0,
            "text_embedding_dim": 48,
            "lyric_hidden_size": 32,
            "lyric_encoder_vocab_size": 64,
            "patch_size": [16, 1],
        },
        (8, 16, 16),
        (4, 48),
        lambda normal: {"conditioning_lyrics": torch.tensor([[3, 7, 11, 2]])},
        shrink=small_lyrics,
        idle={
            ".cross_attn.add_": "of a joint attention that the host's blocks do not have",
            ".cross_attn.to_add_out": "of a joint attention that the host's blocks do not have",
            "projectors.": "for training",
        },
    ),
    Family("Hunyuan3Dv2", {**HUNYUAN_3D, "guidance_embed": True}, (64, 16), (4, 48)),
    Family(
        "Hunyuan3Dv2_1",
        {
            "in_channels": 64,
            "hidden_size": 64,
            "context_dim": 48,
            "depth": 3,
            "num_heads": 2,
            "num_moe_layers": 1,
            "num_experts": 2,
            "moe_top_k": 1,
            "guidance_cond_proj_dim": None,
        },
        (64, 16),
        (4, 48),
        since=(0, 24),
    ),
    Family(
        "Anima",
        {**COSMOS_2, "in_channels": 16},
        (16, 1, 8, 8),
        (4, 48),
        lambda normal: {"t5xxl_ids": torch.tensor([3, 7, 11, 2]), "t5xxl_weights": torch.ones(4)},
        shrink=small_adapter,
    ),
    Family(
        "StableAudio3",
        {
            **AUDIO,
            "io_channels": 256,
            "global_cond_dim": 768,
            "global_cond_type": "adaLN",
            "timestep_features_type": "expo",
            "local_add_cond_dim": 257,
            "norm_type": "rms_norm",
            "num_memory_tokens": 2,
            "attn_kwargs": {"qk_norm": "rms", "differential": True},
        },
        (256, 16),
        (4, 768),
        state=seconds("seconds_total", fourier_features_type="expo"),
        buffers=("transformer.rotary_pos_emb.inv_freq",),
    ),
    Family(
        "ACEStep15",
        {
            "hidden_size": 64,
            "text_hidden_dim": 48,
            "num_dit_layers": 2,
            "num_lyric_layers": 1,
            "num_timbre_layers": 1,
            "num_tokenizer_layers": 1,
            "num_heads": 2,
            "num_kv_heads": 1,
            "head_dim": 32,
            "intermediate_size": 96,
            "fsq_dim": 64,
            "encoder_hidden_size": 64,
            "encoder_intermediate_size": 96,
            "encoder_num_heads": 2,
        },
        (64, 10),
        (4, 48),
        lambda normal: {
            "conditioning_lyrics": normal(1, 4, 48),
            "reference_audio_timbre_latents": [normal(1, 64, 10)],
        },
        since=(0, 24),
        seed=3,  # its tokenizer rounds: noise where bfloat16 does not make other codes of the reference
    ),
    Family(
        "MiniMaxH3",
        {
            "hidden_size": 64,
            "num_layers": 1,
            "token_refiner_num_layers": 1,
            "num_attention_heads": 2,
            "attention_head_dim": 32,
            "ffn_hidden_size": 96,
            "text_dim": 48,
            "timestep_input_dim": 32,
            "time_embed_hidden_size": 64,
            "time_embed_dim": 32,
            "rope_inv_freq_len": 4,
        },
        ((24, 2, 4, 4), (32, 2, 8)),
        (4, 48),
        buffers=("rope.inv_freq",),
    ),
    Family(
        "HiDreamO1",
        {
            "text_config_overrides": {
                "hidden_size": 64,
                "intermediate_size": 96,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "head_dim": 32,
                "rope_dims": [6, 5, 5],
            },
            "vision_config_overrides": {
                "hidden_size": 32,
                "num_heads": 2,
                "intermediate_size": 48,
                "depth": 2,
                "num_position_embeddings": 64,
                "deepstack_visual_indexes": (0,),
            },
        },
        (3, 64, 64),
        (4, 48),
        lambda normal: {
            "text_input_ids": torch.tensor([[1, 2, 3, 4, 5]]),
            "reference_latents": [normal(1, 64, 64, 3).sigmoid()],
        },
    ),
    Family(
        "TripoSplat",
        {
            "q_token_length": 16,
            "model_channels": 64,
            "cond_channels": 48,
            "num_blocks": 1,
            "num_refiner_blocks": 1,
            "num_heads": 2,
            "num_head_channels": 32,
            "cond2_channels": 24,
        },
        ((16, 16), (1, 5)),
        (6, 48),
        lambda normal: {"reference_latents": [normal(1, 24, 2, 2)]},
    ),
]
