"""Small image encoders with random weights, as files and as core CLIP_VISION objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import comfy.clip_vision
import torch
from safetensors.torch import save_file

from lora_conductor.guidance.encoders import METADATA_KEY

from .tiny import randomise

OPEN_CLIP = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 4, "vocab_size": 8, "width": 16, "heads": 2, "layers": 1},
}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
TIMM = {
    "name": "vit_tiny_patch16_224",
    "kwargs": {"img_size": 64, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2},
}


def write_clip(path: Path, text: bool = False) -> Path:
    """A CLIP-type encoder file that describes itself, of pictures only or with its text half."""
    import open_clip

    config = {**OPEN_CLIP, "text_cfg": TEXT} if text else OPEN_CLIP
    model = open_clip.CLIP(**config)
    randomise(model, seed=1)
    weights = {k: v.contiguous() for k, v in model.state_dict().items() if text or k.startswith("visual.")}
    save_file(weights, path, metadata=_metadata("open_clip", "clip", config))
    return path


def write_dino(path: Path) -> Path:
    """A DINO-type encoder file that describes itself."""
    import timm

    model = timm.create_model(TIMM["name"], num_classes=0, **TIMM["kwargs"])
    randomise(model, seed=2)
    save_file(model.state_dict(), path, metadata=_metadata("timm", "dino", TIMM))
    return path


def core_clip_vision(kind: str, folder: Path, **changes: Any) -> comfy.clip_vision.ClipVisionModel:
    """A core CLIP_VISION of one family, tiny: "clip_vision_model", "siglip_vision_model", ... or "dinov2"."""
    config = {
        "model_type": kind,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_channels": 3,
        "patch_size": 8,
        "image_size": 64,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "use_swiglu_ffn": False,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        **({"projection_dim": 32} if kind == "clip_vision_model" else {}),
        **changes,
    }
    path = folder / f"{kind}.json"
    path.write_text(json.dumps(config))
    encoder = comfy.clip_vision.ClipVisionModel(str(path))
    randomise(encoder.model, seed=3)
    return encoder


def _metadata(library: str, role: str, config: dict[str, Any]) -> dict[str, str]:
    description = {"library": library, "role": role, "config": config, "image_size": 64}
    description |= {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    return {METADATA_KEY: json.dumps(description)}


def smooth_picture(seed: int, size: int = 64, batch: int = 1) -> torch.Tensor:
    """An IMAGE [batch, size, size, 3] without pixel noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, 6, 6, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0.05, 0.95).movedim(1, -1)
