"""A model's own weights, as they are without any patch."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from comfy.model_patcher import ModelPatcher, get_key_weight
from torch import Tensor

from .layer_geometry import geometry_of


def weight_reader(model: ModelPatcher, key: str) -> Callable[[], Tensor | None]:
    """A function that reads a layer's weight ``[out, in, *kernel]``, float32, on the CPU, without patches.

    It gives None for weights that are not stored as numbers of that shape (packed ones).
    """
    # Weakly, and not the patcher: that owns what holds this function, and would never be freed.
    model_ref, backup = weakref.ref(model.model), model.backup

    def read() -> Tensor | None:
        module = model_ref()
        if module is None:
            return None
        geometry = geometry_of(module, key)
        weight, _, convert = get_key_weight(module, key)
        if key in backup:
            weight = backup[key].weight
        if isinstance(geometry, str) or weight is None:
            return None
        with torch.inference_mode(False), torch.no_grad():
            weight = weight.detach().to("cpu", copy=True)
            if convert is not None:
                weight = convert(weight, inplace=True)
            if tuple(weight.shape) != geometry.weight_shape or not weight.is_floating_point():
                return None
            return weight.float()

    return read
