"""open_clip: CLIP models, built without weights and without any download."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..preprocess import CLIP_MEAN, CLIP_STD, Preprocess
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
    check_weights,
    pair,
    tokenizer_folder,
    unknown_name,
)


def open_clip_config(file: EncoderFile) -> Mapping[str, Any]:
    """open_clip's description of the file's architecture: its own, or that of the named model."""
    import open_clip

    if file.config is not None:
        return file.config
    # Only names from the list: anything else might be an address to download from.
    if file.model_name not in open_clip.list_models():
        raise unknown_name("open_clip", file, "ViT-B-32, ViT-L-14 or ViT-B-16-SigLIP")
    return open_clip.get_model_config(file.model_name)


def build_open_clip(file: EncoderFile) -> Tower:
    """The visual tower of an open_clip model. config: {"embed_dim", "vision_cfg", ...} as in open_clip's model configs.

    Takes files with the whole model or with the `visual.*` weights only.
    """
    import open_clip

    config = open_clip_config(file)
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
    return Tower(model.visual, Preprocess(pair(model.visual.image_size), mean, std))


def build_open_clip_text(file: EncoderFile, folders: TokenizerFolders) -> TextTower:
    """The text tower of an open_clip model; `file` as for `build_open_clip`, with "text_cfg" in its config."""
    import open_clip

    config = open_clip_config(file)
    text = dict(config.get("text_cfg") or {})
    if text.get("hf_model_name"):
        raise EncoderFileError(
            f"{file.name}: open_clip takes the text half of this model from {text['hf_model_name']}, which would have "
            "to be downloaded. Use a model with a text half of its own, such as ViT-B-32."
        )
    # The visual tower is thrown away, so the smallest possible one is asked for.
    vision = {"image_size": 8, "layers": 1, "width": 8, "head_width": 8, "patch_size": 8}
    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    model = kind(config["embed_dim"], vision, text, quick_gelu=config.get("quick_gelu", False))
    model.visual = torch.nn.Identity()
    del model.logit_scale
    weights = {key.removeprefix("module."): value for key, value in file.weights.items()}
    weights = {key: value for key, value in weights.items() if not key.startswith("visual.")}
    # OpenAI's own files carry their sizes as tensors; the logits' scale and bias belong to the loss of training.
    others = ("logit_", "attn_mask", "input_resolution", "context_length", "vocab_size")
    check_weights(model, weights, file.name, f"open_clip {file.model_name or 'text tower'}", ignored_prefixes=others)
    model.float().eval().requires_grad_(False)
    return TextTower(model.encode_text, _open_clip_tokenizer(file, text, folders))


def _open_clip_tokenizer(
    file: EncoderFile, text: dict[str, Any], folders: TokenizerFolders
) -> Callable[[str], torch.Tensor]:
    from open_clip import tokenizer

    settings = dict(text.get("tokenizer_kwargs") or {})
    length = text.get("context_length", 77)
    if not text.get("hf_tokenizer_name"):
        if text.get("vocab_size", CLIP_VOCABULARY) < CLIP_VOCABULARY:
            raise EncoderFileError(
                f"{file.name}: its text half knows {text['vocab_size']} words only, for which there is no tokenizer. "
                "Use a model with CLIP's own vocabulary."
            )
        return tokenizer.SimpleTokenizer(context_length=length, **settings)
    folder = tokenizer_folder(file, folders, clip=False)
    if text.get("tokenizer_mode"):
        settings["tokenizer_mode"] = text["tokenizer_mode"]
    try:
        return tokenizer.HFTokenizer(str(folder), context_length=length, **settings)
    except Exception as error:  # whatever the files' reader raises
        raise bad_tokenizer(file, folder, error) from error


def _recognises(weights: StateDict, config: Mapping[str, Any] | None) -> bool:
    return any(key.startswith(("visual.", "module.visual.")) for key in weights)


OPEN_CLIP = Library(
    "open_clip",
    "open_clip",
    "open_clip_torch",
    _recognises,
    build_open_clip,
    build_text=build_open_clip_text,
    text_prefixes=("transformer.", "text."),
)
