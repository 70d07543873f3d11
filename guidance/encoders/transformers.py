"""transformers: vision models, CLIP and SigLIP by their halves, built without any download."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..preprocess import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, Preprocess
from .base import (
    CLIP_VOCABULARY,
    EncoderFile,
    EncoderFileError,
    Library,
    StateDict,
    TextTower,
    TokenizerFolders,
    Tower,
    bad_tokenizer,
    check_keys,
    pair,
    tokenizer_folder,
)


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
    import transformers

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
    check_keys(list(loading["missing_keys"]), unexpected, file.name, f"transformers {kind}")
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
    return Preprocess(pair(size), tuple(settings.get("image_mean", mean)), tuple(settings.get("image_std", std)))


def build_transformers_text(file: EncoderFile, folders: TokenizerFolders) -> TextTower:
    """The text half of a transformers CLIP or SigLIP model. config: the model's `config.json`."""
    import transformers

    def half(kind: str, parsed: Any) -> tuple[Any, Any]:
        text = getattr(parsed, "text_config", None)
        if text is None or not kind.startswith(("clip", "siglip")):
            raise EncoderFileError(f"{file.name}: {kind} models read no text. Use a CLIP or SigLIP model.")
        if kind.startswith("siglip"):
            return text, transformers.SiglipTextModel
        text.projection_dim = parsed.projection_dim
        return text, transformers.CLIPTextModelWithProjection

    weights = {key: value for key, value in file.weights.items() if key.startswith(("text_model.", "text_projection."))}
    kind, text, model = load_transformers(file, half, weights)
    model.float().eval().requires_grad_(False)
    own_pairs = kind.startswith("clip") and text.vocab_size == CLIP_VOCABULARY
    folder = tokenizer_folder(file, folders, own_pairs)
    try:
        reader = transformers.CLIPTokenizer if folder == folders.clip else transformers.AutoTokenizer
        tokenizer = reader.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # whatever the files' reader raises
        raise bad_tokenizer(file, folder, error) from error

    def tokenize(prompt: str) -> torch.Tensor:
        # SigLIP reads its padding and was trained with it; CLIP stops at the end of the text.
        padding = "max_length" if kind.startswith("siglip") else False
        length = text.max_position_embeddings
        return tokenizer(prompt, padding=padding, max_length=length, truncation=True, return_tensors="pt")["input_ids"]

    def forward(tokens: torch.Tensor) -> torch.Tensor:
        outputs = model(input_ids=tokens)
        return outputs.pooler_output if kind.startswith("siglip") else outputs.text_embeds

    return TextTower(forward, tokenize)


def _recognises(weights: StateDict, config: Mapping[str, Any] | None) -> bool:
    return config is not None and "model_type" in config


TRANSFORMERS = Library(
    "transformers",
    "transformers",
    "transformers",
    _recognises,
    build_transformers,
    certainty=1,  # what the config.json says is more than what names of weights suggest
    build_text=build_transformers_text,
    text_prefixes=("text_model.",),
    beside="its config.json in the same folder",
)
