"""Encoders for style: the CSD heads, and Gram matrices of an encoder's early features."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from .preprocess import CLIP_MEAN, CLIP_STD, Preprocess
from .towers import EncoderFile, EncoderFileError, Tower, check_weights

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


def is_csd(weights: Iterable[str]) -> bool:
    """Whether these keys of a checkpoint are CSD's."""
    return any(key.endswith(HEADS["style"]) for key in weights)


def build_csd(file: EncoderFile, head: str = "style") -> Tower:
    """CSD, from its published checkpoint. config: as for open_clip; None for the published ViT-L/14.

    head: "style" or "content". Raises EncoderFileError if the file does not hold them.
    """
    try:
        import open_clip
    except ImportError as error:
        raise ImportError(
            f"{file.name} needs the Python package open_clip_torch, which is not installed or not working ({error}). "
            "Install it into ComfyUI's environment (pip install open_clip_torch)."
        ) from error
    config = file.config or open_clip.get_model_config(CSD_BACKBONE)
    weights = {key.removeprefix("module."): value for key, value in file.weights.items()}
    missing = [key for key in HEADS.values() if key not in weights]
    if missing:
        raise EncoderFileError(f"{file.name}: CSD's {missing[0]} is not in the file. Download it again.")
    text = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
    quick = config.get("quick_gelu", False)
    visual = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], text_cfg=text, quick_gelu=quick).visual
    visual.proj = None
    backbone = {k.removeprefix("backbone."): v for k, v in weights.items() if k.startswith("backbone.")}
    check_weights(visual, backbone, file.name, "CSD's backbone")
    size = visual.image_size
    size = (size, size) if isinstance(size, int) else tuple(size)
    return Tower(CsdHead(visual, weights[HEADS[head]].float()), Preprocess(size, CLIP_MEAN, CLIP_STD))


class _Reached(Exception):
    """The layer whose features are wanted has run."""


class GramFeatures(torch.nn.Module):
    """Gram matrix of the features after an early block of a vision network (Gatys et al., arXiv 1508.06576; of CLIP's
    layer 2 in FreeDoM, arXiv 2303.09833): which features occur together, wherever they are. Colour and texture, hardly
    any layout or subject.

    module: a ViT or ResNet of open_clip or timm. block: which block, from 0; a ResNet's first stage stands for it.
    """

    def __init__(self, module: torch.nn.Module, block: int = 2) -> None:
        super().__init__()
        self.module = module
        self._block = [early_block(module, block)]  # in a list: it is part of `module` already

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixel values [B, 3, h, w] -> [B, C * C]."""
        seen: list[torch.Tensor] = []

        def take(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
            seen.append(output)
            raise _Reached  # the later blocks are not needed

        hook = self._block[0].register_forward_hook(take)
        try:
            self.module(pixels)
        except _Reached:
            pass
        finally:
            hook.remove()
        features = _tokens(seen[0], len(pixels))
        return (features.transpose(1, 2) @ features / features.shape[1]).flatten(1)


def early_block(module: torch.nn.Module, block: int) -> torch.nn.Module:
    """The block with that index, or the last one before. Raises EncoderFileError if the network has no blocks."""
    if isinstance(getattr(module, "layer1", None), torch.nn.Module):
        return module.layer1  # type: ignore[return-value]
    for child in module.modules():
        if isinstance(child, (torch.nn.ModuleList, torch.nn.Sequential)) and len(child) > 1:
            kinds = {type(member) for member in child}
            if len(kinds) == 1 and any(True for _ in child[0].children()):
                return child[min(block, len(child) - 1)]
    raise EncoderFileError("this encoder has no blocks to take features from. Set features to embedding.")


def _tokens(features: torch.Tensor, batch: int) -> torch.Tensor:
    """[B, C, H, W], or tokens [B, N, C] with or without a class token -> [B, positions, C]."""
    if features.ndim == 4:
        return features.flatten(2).transpose(1, 2)
    if features.shape[0] != batch:
        features = features.transpose(0, 1)
    side = math.isqrt(features.shape[1])
    return features[:, features.shape[1] - side * side :]
