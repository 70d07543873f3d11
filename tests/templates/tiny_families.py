"""The families that templates are for, small, and LoRA files for them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import comfy.model_patcher

from ..host import tiny
from ..host.families.catalogue import FAMILIES
from ..host.families.family import build
from ..host.families.unets import SIX_SIZES

WORDS = 48  # width of the text embedding, and of the pooled one


def model(family: str) -> comfy.model_patcher.ModelPatcher:
    """A small model with random weights, the same in every process."""
    chosen = FAMILIES[family]
    if family == "SDXL":
        chosen = dataclasses.replace(chosen, unet={**chosen.unet, "adm_in_channels": WORDS + SIX_SIZES})
    return build(chosen)


def write_pair(folder: Path, family: str) -> tuple[str, str]:
    """A subject and a style LoRA of that family, the subject's with a part for the text encoder of an SDXL."""
    shapes = tiny.layer_shapes(model(family), conv=False)
    names = (f"subject_{family}.safetensors", f"style_{family}.safetensors")
    words = {}
    if family == "SDXL":
        layer = "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
        words = {layer: (WORDS, WORDS)}
    tiny.make_lora(folder / names[0], {**shapes, **words}, seed=1)
    tiny.make_lora(folder / names[1], shapes, seed=2)
    return names
