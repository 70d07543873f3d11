"""timm: vision models, built without weights and without any download."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..preprocess import Preprocess
from .base import EncoderFile, Library, StateDict, Tower, check_weights, pair, unknown_name


def build_timm(file: EncoderFile) -> Tower:
    """A timm model without its classifier. config: {"name": architecture, "kwargs": arguments of create_model}."""
    import timm

    config = file.config or {"name": file.model_name}
    name, arguments = config["name"], config.get("kwargs", {})
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        raise unknown_name("timm", file, "vit_small_patch16_dinov3 or vit_base_patch14_dinov2")
    module = timm.create_model(architecture, **{**arguments, "pretrained": False, "num_classes": 0})
    data = module.pretrained_cfg
    size = getattr(getattr(module, "patch_embed", None), "img_size", None) or data["input_size"][-2:]
    heads = ("head.", "head_dist.", "fc.", "classifier.", "mask_token")
    check_weights(module, file.weights, file.name, f"timm {name}", ignored_prefixes=heads)
    return Tower(module, Preprocess(pair(size), tuple(data["mean"]), tuple(data["std"])))


def _recognises(weights: StateDict, config: Mapping[str, Any] | None) -> bool:
    return any("patch_embed." in key for key in weights)


TIMM = Library("timm", "timm", "timm", _recognises, build_timm)
