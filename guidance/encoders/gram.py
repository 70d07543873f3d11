"""Gram matrices of an encoder's early features."""

from __future__ import annotations

import math

import torch

from .base import EncoderFileError


class _Reached(Exception):
    """The layer whose features are wanted has run."""


class GramFeatures(torch.nn.Module):
    """Gram matrix of the features after an early block of a vision network (Gatys et al., arXiv 1508.06576; of CLIP's
    layer 2 in FreeDoM, arXiv 2303.09833): which features occur together, wherever they are. Colour and texture, hardly
    any layout or subject.

    module: a ViT or ResNet of open_clip or timm. block: which block, from 0; a ResNet's first stage stands for it.
    """

    def __init__(self, module: torch.nn.Module, block: int = 2, file_name: str = "encoder file") -> None:
        super().__init__()
        self.module = module
        self._block = [early_block(module, block, file_name)]  # in a list: it is part of `module` already

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


def early_block(module: torch.nn.Module, block: int, file_name: str) -> torch.nn.Module:
    """The block with that index, or the last one before. Raises EncoderFileError if the network has no blocks."""
    if isinstance(getattr(module, "layer1", None), torch.nn.Module):
        return module.layer1  # type: ignore[return-value]
    for child in module.modules():
        if isinstance(child, (torch.nn.ModuleList, torch.nn.Sequential)) and len(child) > 1:
            kinds = {type(member) for member in child}
            if len(kinds) == 1 and any(True for _ in child[0].children()):
                return child[min(block, len(child) - 1)]
    raise EncoderFileError(f"{file_name}: its network has no blocks to take features from. Set features to embedding.")


def _tokens(features: torch.Tensor, batch: int) -> torch.Tensor:
    """[B, C, H, W], or tokens [B, N, C] with or without a class token -> [B, positions, C]."""
    if features.ndim == 4:
        return features.flatten(2).transpose(1, 2)
    if features.shape[0] != batch:
        features = features.transpose(0, 1)
    side = math.isqrt(features.shape[1])
    return features[:, features.shape[1] - side * side :]
