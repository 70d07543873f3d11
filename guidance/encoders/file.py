"""Image encoders for guidance: one interface over CLIP- and DINO-type networks of several libraries.

`build_from_file` makes a network from the contents of a checkpoint file. A file may describe itself in its safetensors
metadata under the key `lora_conductor.encoder`, a JSON object:
    {"library": "open_clip" | "timm" | "transformers", "role": "clip" | "dino", "config": {...},
     "image_size": 224, "mean": [r, g, b], "std": [r, g, b]}
with `config` as the library's builder in towers.py wants it. Any other file needs the library and the model's name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ..preprocess import Preprocess
from .base import (
    EncoderFile,
    EncoderFileError,
    TextTower,
    TokenizerFolders,
    Tower,
)
from .csd import build_csd, is_csd
from .gram import GramFeatures
from .open_clip import build_open_clip, build_open_clip_text
from .timm import build_timm
from .transformers import (
    build_transformers,
    build_transformers_text,
)

BUILDERS: dict[str, Callable[[EncoderFile], Tower]] = {
    "open_clip": build_open_clip,
    "timm": build_timm,
    "transformers": build_transformers,
}


def has_text(library: str, weights: Iterable[str]) -> bool:
    """Whether a checkpoint of that library with these keys holds a text half."""
    prefixes = {"open_clip": ("transformer.", "text."), "transformers": ("text_model.",)}.get(library)
    return prefixes is not None and any(key.removeprefix("module.").startswith(prefixes) for key in weights)


TEXT_BUILDERS: dict[str, Callable[[EncoderFile, TokenizerFolders], TextTower]] = {
    "open_clip": build_open_clip_text,
    "transformers": build_transformers_text,
}


METADATA_KEY = "lora_conductor.encoder"
LIBRARIES = (*BUILDERS, "csd")
FEATURES = ("embedding", "content head", "gram")


class ImageEncoder(Protocol):
    """Embeds images differentiably."""

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """images [B, 3, H, W], RGB in [0, 1] -> [B, D] float32 embeddings, not yet normalised."""
        ...


@dataclass
class TowerEncoder:
    """A vision network with its preprocessing. module: pixel values [B, 3, h, w] -> [B, D].

    reads_text: whether its file holds a text half as well, see `build_text_from_file`.
    """

    module: torch.nn.Module
    preprocess: Preprocess
    library: str
    name: str
    reads_text: bool = False

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """See `ImageEncoder.embed`."""
        return self.embed_with(self.module, images)

    def embed_with(self, forward: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        """`embed` through another callable that stands for the module, for example one with its weights replaced."""
        return forward(self.preprocess(images.float())).float()


def build_from_file(
    state_dict: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None,
    library: str = "auto",
    model_name: str = "",
    config: Mapping[str, Any] | None = None,
    file_name: str = "encoder file",
    features: str = FEATURES[0],
) -> TowerEncoder:
    """Build the encoder a checkpoint file holds and load its weights, fp32, evaluation mode, on the CPU.

    state_dict, metadata: of the file. library: one of LIBRARIES, or "auto" to follow the file. model_name: the
    architecture's name in that library, "" to follow the file. config: a transformers `config.json` that lies
    beside the file, with the keys of a `preprocessor_config.json` under "preprocessor", if there is one. features:
    "embedding" (of CSD, its style head), "content head" (of CSD) or "gram" (see `GramFeatures`).
    Raises EncoderFileError naming the file, what is wrong and what to do; ImportError if the library is not installed.
    """
    if features not in FEATURES:
        raise EncoderFileError(f"{file_name}: unknown features {features!r}. Choose one of: {', '.join(FEATURES)}.")
    library, file, description = _identified(state_dict, metadata, library, model_name, config, file_name)
    head = features == "content head"
    if head and library != "csd":
        raise EncoderFileError(f"{file_name}: only CSD has a content head. Set features to embedding or gram.")
    tower = build_csd(file, "content" if head else "style") if library == "csd" else BUILDERS[library](file)
    preprocess = tower.preprocess
    if description is not None:
        size = description["image_size"]
        preprocess = Preprocess((size, size), tuple(description["mean"]), tuple(description["std"]))
    # Only input gradients are wanted; without this every forward would record the weights' graph as well.
    tower.module.float().eval().requires_grad_(False)
    module = GramFeatures(tower.module) if features == "gram" else tower.module
    reads_text = features == FEATURES[0] and has_text(library, file.weights)
    return TowerEncoder(module, preprocess, library, file.model_name or file_name, reads_text)


def build_text_from_file(
    state_dict: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None,
    library: str = "auto",
    model_name: str = "",
    config: Mapping[str, Any] | None = None,
    file_name: str = "encoder file",
    folders: TokenizerFolders | None = None,
) -> TextTower:
    """The text half of a file whose encoder `reads_text`, with its weights, fp32, on the CPU.

    folders: where the tokenizer's files may lie. The rest is as for `build_from_file`.
    """
    library, file, _ = _identified(state_dict, metadata, library, model_name, config, file_name)
    return TEXT_BUILDERS[library](file, folders or TokenizerFolders())


def _identified(
    state_dict: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None,
    library: str,
    model_name: str,
    config: Mapping[str, Any] | None,
    file_name: str,
) -> tuple[str, EncoderFile, dict[str, Any] | None]:
    """The file's library, what is known of it, and its own description of itself, where that counts."""
    # CSD's own checkpoints keep their weights one level down.
    state_dict = state_dict.get("model_state_dict", state_dict)  # type: ignore[assignment]
    # What the caller says goes before what the file says.
    description = _self_description(metadata, file_name) if library == "auto" and not model_name else None
    if description is not None:
        library, model_name, config = description["library"], "", description["config"]
    elif library == "auto":
        library = _guess_library(state_dict, config, file_name)
    if library not in LIBRARIES:
        raise EncoderFileError(f"{file_name}: unknown library {library!r}. Choose one of: {', '.join(LIBRARIES)}.")
    return library, EncoderFile(state_dict, file_name, model_name, config), description


def _self_description(metadata: Mapping[str, str] | None, file_name: str) -> dict[str, Any] | None:
    text = (metadata or {}).get(METADATA_KEY)
    if text is None:
        return None
    try:
        description = json.loads(text)
    except ValueError as error:
        raise EncoderFileError(f"{file_name}: its metadata {METADATA_KEY!r} is not JSON ({error}).") from error
    if not isinstance(description, dict):
        raise EncoderFileError(f"{file_name}: its metadata {METADATA_KEY!r} is not a JSON object.")
    missing = {"library", "config", "image_size", "mean", "std"} - set(description)
    if missing:
        raise EncoderFileError(f"{file_name}: its metadata {METADATA_KEY!r} lacks {', '.join(sorted(missing))}.")
    return description


def _guess_library(state_dict: Mapping[str, torch.Tensor], config: Mapping[str, Any] | None, file_name: str) -> str:
    if is_csd(state_dict):
        return "csd"
    if config is not None and "model_type" in config:
        return "transformers"
    if any(key.startswith(("visual.", "module.visual.")) for key in state_dict):
        return "open_clip"
    if any("patch_embed." in key for key in state_dict):
        return "timm"
    raise EncoderFileError(
        f"{file_name}: cannot tell which library this file belongs to. Set library to one of {', '.join(LIBRARIES)}; "
        "a transformers model needs its config.json in the same folder."
    )
