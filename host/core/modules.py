"""What we know of a model's modules: where they are, what they compute, how their weights are read."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher, get_key_weight
from torch import Tensor, nn

from ...fusion.adapters import Geometry


def find_module(model: nn.Module, name: str) -> nn.Module:
    """The module of that name, looked up through ``torch.compile``'s wrapper modules."""
    module: Any = model
    for part in name.split("."):
        module = getattr(module, "_orig_mod", module)
        module = getattr(module, part)
    return getattr(module, "_orig_mod", module)


def restore_modules(model: ModelPatcher) -> None:
    """Take off what an earlier run left on a model, if it goes by other names of weights.

    Core keeps the model of the last run as that run had it. Blocks that a pack compiled one by one stand there in the
    place of the model's own, and no key of a LoRA file would be found.
    """
    if not any("._orig_mod." in key for key in model.model.state_dict()):
        return
    loaded = comfy.model_management.current_loaded_models
    for entry in [entry for entry in loaded if entry.model is not None and model.is_clone(entry.model)]:
        entry.model_unload()
        loaded.remove(entry)


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


PLAIN = (torch.float32, torch.float16, torch.bfloat16)


def stores_plainly(model: ModelPatcher, key: str) -> bool:
    """Whether a layer's weight is stored as the numbers it stands for, so that what core merges is rounded no worse.

    Weights in float8, quantised or packed ones lose more of a merge than of what is added while sampling.
    """
    weight, set_weight, convert = get_key_weight(model.model, key)
    if key in model.backup:
        weight = model.backup[key].weight
    geometry = geometry_of(model.model, key)
    return (
        type(weight) in (Tensor, nn.Parameter)
        and weight.dtype in PLAIN
        and set_weight is None
        and convert is None
        and isinstance(geometry, Geometry)
        and tuple(weight.shape) == geometry.weight_shape
    )


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
