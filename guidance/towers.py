"""Vision networks of open_clip, timm and transformers, built without weights and without any download.

The libraries are optional: each is imported only by its own builder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .preprocess import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, Preprocess

StateDict = Mapping[str, torch.Tensor]


class EncoderFileError(ValueError):
    """An encoder file that cannot be used. The message names the file, what is wrong and what to do."""


@dataclass
class Tower:
    """A vision network with its weights. module: pixel values [B, 3, h, w] -> [B, D]."""

    module: torch.nn.Module
    preprocess: Preprocess


@dataclass(frozen=True)
class EncoderFile:
    """The contents of a checkpoint: its weights, its name for messages, and what is known of the architecture.

    model_name: the architecture's name in the library, "" if unknown. config: the library's description of the
    architecture, None if unknown; see the builders.
    """

    weights: StateDict
    name: str
    model_name: str = ""
    config: Mapping[str, Any] | None = None


def open_clip_config(file: EncoderFile) -> Mapping[str, Any]:
    """open_clip's description of the file's architecture: its own, or that of the named model."""
    try:
        import open_clip
    except ImportError as error:
        raise not_installed("open_clip_torch", file.name, error) from error
    if file.config is not None:
        return file.config
    # Only names from the list: anything else might be an address to download from.
    if file.model_name not in open_clip.list_models():
        raise _unknown_name("open_clip", file, "ViT-B-32, ViT-L-14 or ViT-B-16-SigLIP")
    return open_clip.get_model_config(file.model_name)


def build_open_clip(file: EncoderFile) -> Tower:
    """The visual tower of an open_clip model. config: {"embed_dim", "vision_cfg", ...} as in open_clip's model configs.

    Takes files with the whole model or with the `visual.*` weights only.
    """
    config = open_clip_config(file)
    import open_clip

    # The text tower is thrown away, so the smallest possible one is asked for.
    text = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
    vision = {**config["vision_cfg"], "timm_model_pretrained": False}
    model = open_clip.CLIP(
        embed_dim=config["embed_dim"], vision_cfg=vision, text_cfg=text, quick_gelu=config.get("quick_gelu", False)
    )
    # Weight sets of one architecture may differ in normalisation, but only the set knows; where all agree, so do we.
    tags = open_clip.list_pretrained_tags_by_model(file.model_name)
    statistics = {
        (tuple(cfg.get("mean") or CLIP_MEAN), tuple(cfg.get("std") or CLIP_STD))
        for cfg in (open_clip.get_pretrained_cfg(file.model_name, tag) for tag in tags)
    }
    mean, std = statistics.pop() if len(statistics) == 1 else (CLIP_MEAN, CLIP_STD)
    weights = {key.removeprefix("module."): value for key, value in file.weights.items()}
    weights = {key.removeprefix("visual."): value for key, value in weights.items() if key.startswith("visual.")}
    check_weights(model.visual, weights, file.name, f"open_clip {file.model_name or 'visual tower'}")
    return Tower(model.visual, Preprocess(_pair(model.visual.image_size), mean, std))


def build_timm(file: EncoderFile) -> Tower:
    """A timm model without its classifier. config: {"name": architecture, "kwargs": arguments of create_model}."""
    try:
        import timm
    except ImportError as error:
        raise not_installed("timm", file.name, error) from error
    config = file.config or {"name": file.model_name}
    name, arguments = config["name"], config.get("kwargs", {})
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        raise _unknown_name("timm", file, "vit_small_patch16_dinov3 or vit_base_patch14_dinov2")
    module = timm.create_model(architecture, **{**arguments, "pretrained": False, "num_classes": 0})
    data = module.pretrained_cfg
    size = getattr(getattr(module, "patch_embed", None), "img_size", None) or data["input_size"][-2:]
    heads = ("head.", "head_dist.", "fc.", "classifier.", "mask_token")
    check_weights(module, file.weights, file.name, f"timm {name}", ignored_prefixes=heads)
    return Tower(module, Preprocess(_pair(size), tuple(data["mean"]), tuple(data["std"])))


class _Pooled(torch.nn.Module):
    """A transformers vision model reduced to its image embedding."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        outputs = self.model(pixel_values=pixel_values)
        for attribute in ("image_embeds", "pooler_output"):
            pooled = getattr(outputs, attribute, None)
            if pooled is not None:
                return pooled
        return outputs.last_hidden_state[:, 0]


def build_transformers(file: EncoderFile) -> Tower:
    """A transformers vision model, CLIP and SigLIP by their vision half. config: the model's `config.json`."""
    try:
        import transformers
    except ImportError as error:
        raise not_installed("transformers", file.name, error) from error

    def half(kind: str, parsed: Any) -> tuple[Any, Any]:
        vision = getattr(parsed, "vision_config", parsed)
        if kind.startswith("clip"):
            vision.projection_dim = parsed.projection_dim
            return vision, transformers.CLIPVisionModelWithProjection
        if kind.startswith("siglip"):
            return vision, transformers.SiglipVisionModel
        return vision, transformers.MODEL_MAPPING[type(parsed)]

    halves = ("text_model.", "text_projection.", "logit_")
    weights = {key: value for key, value in file.weights.items() if not key.startswith(halves)}
    kind, vision, model = load_transformers(file, half, weights)
    assert file.config is not None
    return Tower(_Pooled(model), _transformers_preprocess(kind, vision, file.config.get("preprocessor") or {}))


def load_transformers(
    file: EncoderFile, choose: Callable[[str, Any], tuple[Any, Any]], weights: StateDict
) -> tuple[str, Any, torch.nn.Module]:
    """The model type of the file's config, the configuration of the half that is wanted, and that half with `weights`.

    choose: (model type, parsed configuration) -> configuration and class of the half.
    """
    import transformers

    config = file.config
    if not config or "model_type" not in config:
        raise EncoderFileError(
            f"{file.name}: a transformers model is described by its config.json. Put the file and its config.json "
            "into one folder inside ComfyUI's clip_vision folder."
        )
    settings = {key: value for key, value in config.items() if key != "preprocessor"}
    kind = settings.pop("model_type")
    try:
        half, builder = choose(kind, transformers.AutoConfig.for_model(kind, **settings))
    except EncoderFileError:
        raise
    except (ValueError, KeyError) as error:
        raise EncoderFileError(
            f"{file.name}: transformers cannot build the model of its config.json: {error}"
        ) from error
    # Through from_pretrained, although there is nothing to fetch, because it knows how the key names in files differ
    # from those of the module in each version of the library.
    model, loading = builder.from_pretrained(None, config=half, state_dict=dict(weights), output_loading_info=True)
    heads = ("classifier.", "head.")
    unexpected = [key for key in loading["unexpected_keys"] if not key.startswith(heads)]
    _check_keys(list(loading["missing_keys"]), unexpected, file.name, f"transformers {kind}")
    return kind, half, model


def _transformers_preprocess(kind: str, vision: Any, settings: Mapping[str, Any]) -> Preprocess:
    size: Any = settings.get("crop_size") or settings.get("size") or getattr(vision, "image_size", 224)
    if isinstance(size, Mapping):
        edge = size.get("shortest_edge")
        size = (edge, edge) if edge else (size["height"], size["width"])
    if kind.startswith("clip"):
        mean, std = CLIP_MEAN, CLIP_STD
    elif kind.startswith("siglip"):
        mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    else:
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    return Preprocess(_pair(size), tuple(settings.get("image_mean", mean)), tuple(settings.get("image_std", std)))


BUILDERS: dict[str, Callable[[EncoderFile], Tower]] = {
    "open_clip": build_open_clip,
    "timm": build_timm,
    "transformers": build_transformers,
}


def not_installed(package: str, file_name: str, error: ImportError) -> ImportError:
    """The error for a file whose library cannot be imported."""
    return ImportError(
        f"{file_name} needs the Python package {package}, which is not installed or not working ({error}). Install it "
        f"into ComfyUI's environment (pip install {package}), or use a core CLIP Vision model instead."
    )


def _unknown_name(library: str, file: EncoderFile, examples: str) -> EncoderFileError:
    name = file.model_name
    problem = f"{library} has no model named {name!r}" if name else "the file does not say its architecture"
    return EncoderFileError(
        f"{file.name}: {problem}. Set model_name to {library}'s name for it, for example {examples}."
    )


def check_weights(
    module: torch.nn.Module, weights: StateDict, file_name: str, model: str, ignored_prefixes: tuple[str, ...] = ()
) -> None:
    """Load a file's weights into the module; raises EncoderFileError naming the file unless they fit exactly."""
    own = module.state_dict()
    unexpected = [key for key in weights if key not in own and not key.startswith(ignored_prefixes)]
    _check_keys([key for key in own if key not in weights], unexpected, file_name, model)
    wrong = [key for key, value in own.items() if weights[key].shape != value.shape]
    if wrong:
        key = wrong[0]
        raise EncoderFileError(
            f"{file_name} does not fit {model}: {key} is {list(weights[key].shape)} in the file and "
            f"{list(own[key].shape)} in the model ({len(wrong)} such weights). Check model_name."
        )
    module.load_state_dict({key: weights[key] for key in own})


def _check_keys(missing: list[str], unexpected: list[str], file_name: str, model: str) -> None:
    if missing or unexpected:
        raise EncoderFileError(
            f"{file_name} does not hold the weights of {model}: missing are {_few(missing)}; not part of it are "
            f"{_few(unexpected)}. Check library and model_name, or use another file."
        )


def _few(keys: list[str]) -> str:
    if not keys:
        return "none"
    return ", ".join(sorted(keys)[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _pair(size: Any) -> tuple[int, int]:
    return (int(size), int(size)) if isinstance(size, (int, float)) else (int(size[0]), int(size[1]))
