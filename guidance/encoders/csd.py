"""CSD: a CLIP tower with a head for style and one for content."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from ..preprocess import CLIP_MEAN, CLIP_STD, Preprocess
from .base import EncoderFile, EncoderFileError, Library, StateDict, Tower, check_weights, pair
from .building import building
from .description import mapping
from .open_clip import vision_arguments

CSD_BACKBONE = "ViT-L-14-quickgelu"  # OpenAI's CLIP, which CSD was made from
HEADS = {"style": "last_layer_style", "content": "last_layer_content"}


class CsdHead(torch.nn.Module):
    """CLIP's visual tower without its projection, and one of CSD's two heads (Somepalli et al., arXiv 2404.01292)."""

    def __init__(self, backbone: torch.nn.Module, head: torch.Tensor) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = torch.nn.Parameter(head.clone(), requires_grad=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixel values [B, 3, h, w] -> [B, D]."""
        return self.backbone(pixels) @ self.head


def build_csd(file: EncoderFile, head: str = "style") -> Tower:
    """CSD, from its published checkpoint. config: as for open_clip; None for the published ViT-L/14.

    head: "style" or "content". Raises EncoderFileError if the file does not hold them.
    """
    import open_clip

    config = file.config or open_clip.get_model_config(CSD_BACKBONE)
    weights = {key.removeprefix("module."): value for key, value in file.weights.items()}
    missing = [key for key in HEADS.values() if key not in weights]
    if missing:
        raise EncoderFileError(f"{file.name}: CSD's {missing[0]} is not in the file. Download it again.")
    text = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
    arguments = vision_arguments(mapping(config, "config", file.name), file)
    with building(file, "CSD's backbone"):
        visual = open_clip.CLIP(text_cfg=text, **arguments).visual
        visual.proj = None
    backbone = {k.removeprefix("backbone."): v for k, v in weights.items() if k.startswith("backbone.")}
    check_weights(visual, backbone, file.name, "CSD's backbone")
    width = getattr(getattr(visual, "ln_post", None), "weight", torch.empty(0)).numel()
    if weights[HEADS[head]].ndim != 2 or len(weights[HEADS[head]]) != width:
        raise EncoderFileError(f"{file.name}: CSD's {HEADS[head]} does not fit its backbone. Download it again.")
    preprocess = Preprocess(pair(visual.image_size), CLIP_MEAN, CLIP_STD)
    return Tower(CsdHead(visual, weights[HEADS[head]].float()), preprocess, captioned=True)


def _recognises(weights: StateDict, config: Mapping[str, Any] | None) -> bool:
    return any(key.endswith(HEADS["style"]) for key in weights)


CSD = Library(
    "csd",
    "open_clip",
    "open_clip_torch",
    _recognises,
    build_csd,
    certainty=2,  # nobody else calls a weight so
    heads={"content head": partial(build_csd, head="content")},
)
