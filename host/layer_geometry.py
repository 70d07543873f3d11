"""The shape of a model's layer."""

from __future__ import annotations

import comfy.utils
import torch

from ..fusion.geometry import Geometry


def geometry_of(model: torch.nn.Module, key: str) -> Geometry | str:
    """The geometry of the layer that a weight key belongs to, or why its output cannot be routed.

    Layers are known by their attributes, not their class: quantised and packed layers (GGUF, fp8, int8) have the
    attributes of the layer they stand for.
    """
    name, _, leaf = key.rpartition(".")
    if leaf != "weight":
        return f"a {leaf} is no projection"
    try:
        module = comfy.utils.get_attr(model, name)
    except AttributeError:
        return "the model has no such layer"
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return Geometry(module.in_features, module.out_features)
    if hasattr(module, "kernel_size") and hasattr(module, "in_channels") and not getattr(module, "transposed", False):
        return Geometry(
            module.in_channels,
            module.out_channels,
            tuple(module.kernel_size),
            tuple(module.stride),
            module.padding if isinstance(module.padding, str) else tuple(module.padding),
            tuple(module.dilation),
            module.padding_mode,
            module.groups,
        )
    return f"{type(module).__name__} is no projection"
