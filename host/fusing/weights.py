"""LoRAs that act while sampling, in nodes that take a model's weights: merges, saved checkpoints, extracted LoRAs.

They get the plain sum of the LoRAs, as ComfyUI's loaders would have left it on the model, and the user is told. What
such nodes call are methods of the ModelPatcher. Core clones a patcher as what it is: a class of its own, of the
patchers that carry such LoRAs and of no other, answers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import comfy.model_management
from comfy.model_patcher import ModelPatcher

from ..core import executing, logger, say_on_node

SUMMED = (
    "The LoRAs are in here as the plain sum, as ComfyUI's loaders have it: those of DualLoRADynamicLoader act while "
    "sampling, and this node takes weights. To keep what the policy does, put the loader after this node, or write the "
    "fusion with BakeFusedLoRA and load that file before this node."
)
Plain = Callable[[ModelPatcher], ModelPatcher]


class GivesSum:
    """Before a patcher's own class: the LoRAs' sum comes with the weights."""

    plain: Plain

    def get_key_patches(self: Any, filter_prefix: str | None = None) -> Any:
        """As core's: key -> the weight and what patches it."""
        if filter_prefix is None:  # core's own hooks, about to sample with us; nodes ask for the diffusion model's
            return super().get_key_patches()  # type: ignore[misc]
        _tell()
        return type(self).plain(self).get_key_patches(filter_prefix)

    def state_dict_for_saving(self: Any, *args: Any, **kwargs: Any) -> Any:
        """As core's: key -> the weight as it is written to a checkpoint."""
        return _loaded_sum(self).state_dict_for_saving(*args, **kwargs)

    def model_state_dict(self: Any, filter_prefix: str | None = None) -> Any:
        """As core's: key -> the weight as it is loaded, of which LoRAs are extracted."""
        if filter_prefix is None:  # whoever wants all of them wants their names
            return super().model_state_dict()  # type: ignore[misc]
        return _loaded_sum(self).model_state_dict(filter_prefix)

    def patch_weight_to_device(self: Any, *args: Any, **kwargs: Any) -> Any:
        """As core's: patches a weight, or gives it patched, where memory had no room to load it so."""
        if kwargs.get("return_weight"):
            return type(self).plain(self).patch_weight_to_device(*args, **kwargs)
        return super().patch_weight_to_device(*args, **kwargs)  # type: ignore[misc]


def _loaded_sum(model: Any) -> ModelPatcher:
    """Core has loaded the model that it was given; what nodes want of it are weights as they are loaded."""
    _tell()
    summed = type(model).plain(model)
    comfy.model_management.load_models_gpu([summed])
    return summed


@cache
def _giving(own: type[ModelPatcher], plain: Plain) -> type[ModelPatcher]:
    return type(own.__name__, (GivesSum, own), {"plain": staticmethod(plain)})


def give_sum(model: ModelPatcher, plain: Plain) -> None:
    """Have a model, and clones of it, give the LoRAs' sum with its weights.

    Args:
        model: carries LoRAs that act while sampling.
        plain: makes of it a clone that has them as ordinary patches.
    """
    if not isinstance(model, GivesSum):
        own: Any = type(model)
        model.__class__ = _giving(own, plain)


def give_own(model: ModelPatcher) -> None:
    """Have a model's weights be its own again."""
    if isinstance(model, GivesSum):
        model.__class__ = type(model).__mro__[2]


def _tell() -> None:
    place = executing()
    logger.warning("LoRA Conductor%s: %s", f", node {place.node}" if place is not None else "", SUMMED)
    if place is not None:
        say_on_node(place.node, SUMMED)
