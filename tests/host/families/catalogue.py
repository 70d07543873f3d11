"""Small models of every family of diffusion models that the host knows, by the name of its configuration class."""

from __future__ import annotations

from .family import Family
from .images import IMAGES
from .more_images import MORE_IMAGES
from .others import OTHERS
from .unets import UNETS
from .videos import VIDEOS
from .wans import WANS

FAMILIES: dict[str, Family] = {
    family.model: family for family in (*UNETS, *IMAGES, *MORE_IMAGES, *VIDEOS, *WANS, *OTHERS)
}

# What else the host's `supported_models` lists, and why it has no model here.
ELSEWHERE: dict[str, str] = {
    "SD21UnclipH": "SD21UnclipL with a wider label",
    "SSD1B": "SDXL with fewer layers",
    "Segmind_Vega": "SDXL with fewer layers",
    "KOALA_700M": "SDXL with fewer layers",
    "KOALA_1B": "SDXL with fewer layers",
    "SV3D_u": "SV3D_p with a narrower label",
    "Hunyuan3Dv2mini": "Hunyuan3Dv2 with fewer layers",
    "RT_DETR_v4": "finds objects, samples nothing",
    "SAM3": "cuts objects out, samples nothing",
    "SAM31": "cuts objects out, samples nothing",
    "DepthAnything3": "estimates depth, samples nothing",
}
