"""What people and trainers call base models, and which of ComfyUI's families they mean by it."""

from __future__ import annotations

import re
from typing import NamedTuple

from torch import nn

from .family import family_of


class _Base(NamedTuple):
    name: str
    words: str  # in what files and sites say, lower case
    families: str  # ComfyUI's, by the beginning of their names


# The first whose words fit is meant: "SDXL 1.0" is no SD 1.
_BASES = [
    _Base(*row)
    for row in (
        ("AuraFlow", r"aura[\W_]*flow|pony[\W_]*(diffusion[\W_]*)?v?7", "AuraFlow"),
        (
            "SDXL",
            r"sd[\W_]*xl|diffusion[\W_]*xl|\bxl\b|pony|illustrious|noob|animagine",
            "SDXL(?!Refiner)|SSD1B|Seg|KOALA",
        ),
        ("FLUX.2", r"flux[\W_]*2|klein", "Flux2"),
        ("Chroma", r"chroma", "Chroma"),
        ("FLUX.1", r"flux", "Flux(?!2)"),
        ("Krea 2", r"krea[\W_]*2", "Krea2"),
        ("Stable Cascade", r"cascade", "Stable_Cascade"),
        ("SD 3", r"\bsd[\W_]*v?3|diffusion[\W_]*v?3", "SD3"),
        ("SD 2", r"\bsd[\W_]*v?2|diffusion[\W_]*v?2", "SD2"),
        ("SD 1.5", r"\bsd[\W_]*v?1|diffusion[\W_]*v?1", "SD15"),
        ("Qwen-Image", r"qwen", "QwenImage"),
        ("Z-Image", r"z[\W_]*image", "ZImage"),
        ("Lumina 2", r"lumina", "Lumina2"),
        ("Wan", r"\bwan", "WAN2"),
        ("HunyuanVideo", r"hunyuan[\W_]*video", "HunyuanVideo"),
        ("HiDream", r"hidream", "HiDream"),
        ("PixArt", r"pixart", "PixArt"),
        ("LTX", r"\bltx", "LTX"),
        ("Anima", r"\banima\b", "Anima"),
    )
]


def base_called(words: str) -> str:
    """The base model that somebody's words mean, by one name for each; empty where they are not understood."""
    said = words.lower()
    return next((base.name for base in _BASES if re.search(base.words, said)), "")


def base_of(model: nn.Module) -> str:
    """The base model that ComfyUI's configuration of a model is for; empty for families that nothing is known of."""
    family = family_of(model)
    return next((base.name for base in _BASES if re.match(base.families, family)), "")
