"""Loaders of baked files: which of a file's keys ComfyUI and diffusers use, and what they complain of."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import comfy.lora
import comfy.lora_convert
import diffusers
import torch
from comfy.model_patcher import ModelPatcher
from diffusers.loaders import lora_pipeline
from torch import Tensor, nn

from .diffusers_models import DIFFUSERS, Known

LEAF = re.compile(r"[._](lora(_[AB]|_(down|up)|\.(down|up))|lora_linear_layer\.(down|up))(\.default)?\.weight$")
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass
class Reading:
    """What a loader made of a file.

    Attributes:
        unused: keys that it did not use.
        said: warnings, or the error.
    """

    unused: list[str]
    said: list[str]


@contextmanager
def _listening(*names: str) -> Iterator[list[str]]:
    """Warnings that loggers gave."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    loggers = [logging.getLogger(name or None) for name in names]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield said
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def read_by_comfyui(model: ModelPatcher, tensors: dict[str, Tensor]) -> Reading:
    """The file through core's own loader."""
    tensors = comfy.lora_convert.convert_lora(dict(tensors))
    with _listening("") as said:
        patches = comfy.lora.load_lora(tensors, comfy.lora.model_lora_keys_unet(model.model, {}))
    used = {id(tensor) for patch in patches.values() for tensor in getattr(patch, "weights", ()) if tensor is not None}
    scales = {key for key in tensors if key.endswith(".alpha")}
    unused = [key for key, tensor in tensors.items() if id(tensor) not in used and key not in scales]
    return Reading(unused, said)


@cache
def layers_of(family: str) -> frozenset[str]:
    """Names of the layers of diffusers' model of a family."""
    known = DIFFUSERS[family]
    with torch.device("meta"):
        model = getattr(diffusers, known.model)(**known.config)
    return frozenset(name for name, module in model.named_modules() if isinstance(module, LAYERS))


def read_by_diffusers(family: str, tensors: dict[str, Tensor]) -> Reading:
    """The file through diffusers' own converters, and what they give against the names of its model's layers.

    Every tensor is filled with a number of its own, so that it is known again whatever it was cut into.
    """
    known = DIFFUSERS[family]
    keys = list(tensors)
    marked = {
        key: value if key.endswith(".alpha") else torch.full_like(value, i + 1, dtype=torch.float32)
        for i, (key, value) in enumerate(tensors.items())
    }
    with _listening("diffusers") as said:
        try:
            found = _converted(known, marked)
        except (ValueError, KeyError, AssertionError, RuntimeError, IndexError) as error:
            return Reading(keys, [f"{type(error).__name__}: {str(error)[:200]}"])
    used: set[str] = set()
    layers = layers_of(family)
    for key, value in found.items():
        name = LEAF.sub("", key)
        if name != key and _place(name, layers) is not None:
            used.add(keys[round(float(value.flatten()[0])) - 1])
    for key in keys:
        if key.endswith(".alpha") and f"{key.removesuffix('.alpha')}.lora_down.weight" in used:
            used.add(key)
    return Reading([key for key in keys if key not in used], said)


def _converted(known: Known, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if not known.mixin:
        return tensors
    read = getattr(lora_pipeline, known.mixin).lora_state_dict
    if known.model != "UNet2DConditionModel":
        return read(dict(tensors))
    with torch.device("meta"):
        config = getattr(diffusers, known.model)(**known.config).config
    return read(dict(tensors), unet_config=config)[0]


def _place(name: str, layers: frozenset[str]) -> str | None:
    """The layer that diffusers puts an adapter of that name on."""
    part, _, rest = name.partition(".")
    if part == "text_conditioner":  # of Anima, a model beside its transformer
        return name
    if part not in ("transformer", "unet"):
        return None
    rest = re.sub(r"\.processor\.(to_\w+?)(_lora)?$", r".\1", rest)
    return next((place for place in (rest, f"{rest}.0") if place in layers), None)
