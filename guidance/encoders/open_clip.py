"""open_clip: CLIP models, built without weights and without any download."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
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
    check_weights,
    pair,
    unknown_name,
)
from .building import building
from .description import (
    Check,
    allowed,
    any_of,
    checked,
    fields_of,
    flag,
    layers,
    listed_name,
    mapping,
    number,
    one_of,
    one_or_pair,
    pixels,
    size,
    table_of,
    whole,
    words,
)
from .tokenizer_files import bad_tokenizer, known_class, model_config, tokenizer_folder

_BLOCKS: dict[str, Check] = {
    **fields_of(size, "width"),
    **fields_of(number, "mlp_ratio ls_init_value"),
    **fields_of(
        flag, "output_tokens final_ln_after_pool qk_norm scaled_cosine_attn scale_heads scale_attn_inner scale_attn"
    ),
    "scale_fc": flag,
    "block_type": one_of("default", "custom"),
    "act_kwargs": table_of({"approximate": one_of("none", "tanh")}),
    "norm_kwargs": table_of({"eps": number}),
}
_TEXT: dict[str, Check] = {
    **_BLOCKS,
    "layers": layers,
    **fields_of(size, "heads vocab_size"),
    "context_length": whole(4096),
    **fields_of(flag, "embed_cls no_causal_mask proj_bias hf_model_pretrained"),
    **fields_of(whole(2**22, 0), "pad_id eos_id"),
    "pool_type": one_of("first", "last", "argmax", "eos", "none"),
    "proj_type": one_of("linear", "none"),
    # Names that are asked about and never followed: see build_open_clip_text.
    **fields_of(lambda value: isinstance(value, str), "hf_model_name hf_tokenizer_name hf_proj_type hf_pooler_type"),
    "tokenizer_mode": one_of("clips", ""),
    "tokenizer_kwargs": lambda value: isinstance(value, Mapping),
}
# Models whose tokenizers open_clip's text halves use.
_READERS = words(
    """albert bert camembert clip distilbert electra gemma gemma2 gemma3 gemma3_text gpt2 llama mbart mpnet mt5
    qwen2 roberta siglip siglip2 t5 xlm-roberta"""
)
_TOKENIZER: dict[str, Check] = {
    "clean": one_of("whitespace", "lower", "canonicalize"),
    "strip_sep_token": flag,
}


def _vision() -> dict[str, Check]:
    import timm  # open_clip needs it itself

    return {
        **_BLOCKS,
        "layers": layers,
        **fields_of(size, "head_width attn_pooler_heads"),
        "patch_size": one_or_pair(pixels),
        "image_size": one_or_pair(pixels),
        "patch_dropout": number,
        "attn_pooler_queries": whole(4096),
        "attentional_pool": any_of(flag, one_of("parallel", "parallel_pool", "cascade", "cascade_pool")),
        "no_ln_pre": flag,
        "pos_embed_type": one_of("learnable", "sin_cos_2d"),
        "pool_type": one_of("tok", "avg", "none"),
        # Only names from the list: anything else might be an address to download from.
        "timm_model_name": functools.partial(listed_name, timm.is_model),
        **fields_of(flag, "timm_model_pretrained timm_proj_bias"),
        "timm_pool": one_of("abs_attn", "rot_attn", "avg", "max", "avgmax", "catavgmax", "token", "map", ""),
        "timm_proj": one_of("linear", "mlp", "none", ""),
        **fields_of(number, "timm_drop timm_drop_path"),
    }


def vision_arguments(config: Mapping[str, Any], file: EncoderFile) -> dict[str, Any]:
    """embed_dim, vision_cfg and quick_gelu of a description, checked. Raises EncoderFileError naming the field."""
    vision = checked(config.get("vision_cfg"), _vision(), "vision_cfg", file.name)
    return {**_shared(config, file), "vision_cfg": {**vision, "timm_model_pretrained": False}}


def _shared(config: Mapping[str, Any], file: EncoderFile) -> dict[str, Any]:
    quick = allowed("quick_gelu", flag, config.get("quick_gelu") or False, file.name)
    return {"embed_dim": allowed("embed_dim", size, config.get("embed_dim"), file.name), "quick_gelu": bool(quick)}


def open_clip_config(file: EncoderFile) -> Mapping[str, Any]:
    """open_clip's description of the file's architecture: its own, or that of the named model."""
    import open_clip

    if file.config is not None:
        return mapping(file.config, "config", file.name)
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
    arguments = vision_arguments(config, file)
    with building(file, f"open_clip {file.model_name or 'visual tower'}"):
        model = open_clip.CLIP(text_cfg=text, **arguments)
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
    return Tower(model.visual, Preprocess(pair(model.visual.image_size), mean, std), captioned=True)


def build_open_clip_text(file: EncoderFile, folders: TokenizerFolders) -> TextTower:
    """The text tower of an open_clip model; `file` as for `build_open_clip`, with "text_cfg" in its config."""
    import open_clip

    config = open_clip_config(file)
    text = checked(config.get("text_cfg") or {}, _TEXT, "text_cfg", file.name)
    if text.get("hf_model_name"):
        raise EncoderFileError(
            f"{file.name}: open_clip takes the text half of this model from {text['hf_model_name'][:80]}, which would "
            "have to be downloaded. Use a model with a text half of its own, such as ViT-B-32."
        )
    # The visual tower is thrown away, so the smallest possible one is asked for.
    vision = {"image_size": 8, "layers": 1, "width": 8, "head_width": 8, "patch_size": 8}
    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    shared = _shared(config, file)
    with building(file, f"open_clip {file.model_name or 'text tower'}"):
        model = kind(vision_cfg=vision, text_cfg=text, **shared)
    model.visual = torch.nn.Identity()
    del model.logit_scale
    weights = {key.removeprefix("module."): value for key, value in file.weights.items()}
    weights = {key: value for key, value in weights.items() if not key.startswith("visual.")}
    # OpenAI's own files carry their sizes as tensors; the logits' scale and bias belong to the loss of training.
    others = ("logit_", "attn_mask", "input_resolution", "context_length", "vocab_size")
    check_weights(model, weights, file.name, f"open_clip {file.model_name or 'text tower'}", ignored_prefixes=others)
    model.float().eval().requires_grad_(False)
    return TextTower(model.encode_text, _open_clip_tokenizer(file, text, folders), file.name)


def _open_clip_tokenizer(
    file: EncoderFile, text: dict[str, Any], folders: TokenizerFolders
) -> Callable[[str], torch.Tensor]:
    from open_clip import tokenizer

    given = checked(text.get("tokenizer_kwargs") or {}, _TOKENIZER, "text_cfg.tokenizer_kwargs", file.name)
    settings = {key: value for key, value in given.items() if value is not None}
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
    settings |= _tokenizers_model(file, folder)
    try:
        return tokenizer.HFTokenizer(
            str(folder), context_length=length, trust_remote_code=False, local_files_only=True, **settings
        )
    except Exception as error:  # whatever the files' reader raises
        raise bad_tokenizer(file, folder, error) from error


def _tokenizers_model(file: EncoderFile, folder: Path) -> dict[str, Any]:
    """Which model the tokenizer was made for, as transformers wants it told: left to itself it would build the whole
    description in config.json. Empty where there is none."""
    described = model_config(file, folder)
    if described is None:
        return {}
    import transformers

    kind, name = described.get("model_type"), described.get("tokenizer_class")
    if not isinstance(kind, str) or kind not in _READERS or not (name is None or known_class(name)):
        raise EncoderFileError(
            f"{file.name}: the config.json beside it is of a model whose tokenizer is not read. Put the tokenizer's "
            "files alone beside it."
        )
    return {"config": transformers.AutoConfig.for_model(kind, **({"tokenizer_class": name} if name else {}))}


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
