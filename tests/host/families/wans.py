"""Wan and the many models made from it."""

from __future__ import annotations

import comfy.ldm.wan.model
import comfy.ldm.wan.model_animate
import comfy.ops
import torch

from .family import Family
from .videos import CLIP_VISION_WIDTH, WAN, picture, vision


def small_audio(model, dtype):
    model.diffusion_model.audio_proj = comfy.ldm.wan.model.AudioProjModel(
        seq_len=2, blocks=2, channels=8, intermediate_dim=16, dtype=dtype, operations=comfy.ops.manual_cast
    )


class Motion(torch.nn.Module):
    """Stands for the encoder of faces, which takes pictures of 512 pixels and has 37 million parameters."""

    def get_motion(self, faces):
        return faces.flatten(1)[:, :32]


def small_faces(model, dtype):
    network = model.diffusion_model
    network.motion_encoder = Motion()
    network.face_encoder = comfy.ldm.wan.model_animate.FaceEncoder(
        in_dim=32, hidden_dim=64, num_heads=1, dtype=dtype, operations=comfy.ops.manual_cast
    )


def camera(normal):
    return {**picture(normal), "camera_conditions": normal(1, 24, 2, 64, 64)}


def pose(normal):
    return {**picture(normal), "pose_video_latent": normal(1, 16, 1, 8, 8)}


def pose_and_masks(normal):
    return {**pose(normal), "driving_mask_28ch": normal(1, 1, 28, 8, 8)}


WANS = [
    Family("WAN21_Camera", {**WAN, "in_dim": 32}, (16, 2, 8, 8), (4, 48), camera),
    Family("WAN22_Camera", {**WAN, "in_dim": 36}, (16, 2, 8, 8), (4, 48), camera),
    Family(
        "WAN21_HuMo",
        {**WAN, "in_dim": 36},
        (16, 2, 8, 8),
        (4, 48),
        lambda normal: {"audio_embed": normal(1, 2, 2, 2, 8)},
        shrink=small_audio,
    ),
    Family(
        "WAN22_S2V",
        {**WAN, "audio_dim": 24, "audio_inject_layers": [0, 1]},
        (16, 2, 8, 8),
        (4, 48),
        lambda normal: {
            "audio_embed": normal(1, 25, 24, 8),
            "control_video": normal(1, 16, 2, 8, 8),
            "reference_motion": normal(1, 16, 19, 8, 8),
        },
    ),
    Family(
        "WAN22_Animate",
        {**WAN, "in_dim": 36, "num_layers": 5},
        (16, 2, 8, 8),
        (4, 48),
        lambda normal: {**pose(normal), "face_video_pixels": normal(1, 3, 4, 16, 16)},
        shrink=small_faces,
    ),
    Family("WAN21_SCAIL", {**WAN, "in_dim": 20}, (16, 2, 8, 8), (4, 48), pose),
    Family("WAN21_SCAIL2", {**WAN, "in_dim": 20}, (16, 2, 8, 8), (4, 48), pose_and_masks),
    Family(
        "WAN22_WanDancer",
        {**WAN, "in_dim": 36, "music_dim": 64, "music_latent_dim": 64, "music_heads": 2, "audio_inject_layers": [0, 1]},
        (16, 2, 8, 8),
        (4, 48),
        lambda normal: {
            **picture(normal),
            "clip_vision_output_ref": vision(normal(1, 3, CLIP_VISION_WIDTH)),
            "audio_embed": normal(1, 8, 35),
            "fps": 16,
        },
        idle={
            "patch_embedding.": "for 30 frames a second; patch_embedding_global is for others",
            "head.head": "for 30 frames a second; head_global is for others",
        },
    ),
]
