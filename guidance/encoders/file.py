"""An encoder from the contents of a checkpoint file, whichever library it was made for.

A file may describe itself in its safetensors metadata under the key `lora_conductor.encoder`, a JSON object:
    {"library": one of LIBRARIES, "role": "clip" | "dino", "config": {...},
     "image_size": 224, "mean": [r, g, b], "std": [r, g, b]}
with `config` as the library's builder wants it. Any other file needs the library and the model's name.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..preprocess import Preprocess
from .base import EncoderFile, EncoderFileError, Library, StateDict, TextTower, TokenizerFolders
from .building import check_reads, usable
from .csd import CSD
from .description import MEAN_LEAST, STD_LEAST, allowed, pixels, read_json, statistics
from .gram import GramFeatures
from .open_clip import OPEN_CLIP
from .timm import TIMM
from .transformers import TRANSFORMERS

# One row a library. Names are saved in workflows: append.
LIBRARIES: dict[str, Library] = {library.name: library for library in (OPEN_CLIP, TIMM, TRANSFORMERS, CSD)}
HEADS = tuple(dict.fromkeys(head for library in LIBRARIES.values() for head in library.heads))
FEATURES = ("embedding", *HEADS, "gram")
METADATA_KEY = "lora_conductor.encoder"


@dataclass
class TowerEncoder:
    """A vision network with its preprocessing. module: pixel values [B, 3, h, w] -> [B, D].

    reads_text: whether its file holds a text half as well, see `build_text_from_file`. captioned: whether it compares
    what CLIP compares, by a network that was trained with texts.
    """

    module: torch.nn.Module
    preprocess: Preprocess
    reads_text: bool = False
    captioned: bool = False

    def embed(
        self, images: torch.Tensor, forward: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> torch.Tensor:
        """images [B, 3, H, W], RGB in [0, 1] -> [B, D] float32 embeddings, not yet normalised; differentiable.

        forward: stands for the module, for example one with its weights replaced.
        """
        return (forward or self.module)(self.preprocess(images.float())).float()


def build_from_file(
    state_dict: StateDict,
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
    chosen, file, description = _identified(state_dict, metadata, library, model_name, config, file_name)
    build = chosen.heads.get(features) if features in HEADS else chosen.build
    if build is None:
        able = " and ".join(name for name, other in LIBRARIES.items() if features in other.heads)
        raise EncoderFileError(f"{file_name}: only {able} has a {features}. Set features to embedding or gram.")
    _check_installed(chosen, file_name)
    described = _described_preprocess(description, file_name) if description is not None else None
    tower = build(file)
    # Only input gradients are wanted; without this every forward would record the weights' graph as well.
    tower.module.float().eval().requires_grad_(False)
    preprocess = described or tower.preprocess
    if file.config is not None:
        check_reads(tower.module, preprocess.size, file_name)
    module = GramFeatures(tower.module, file_name=file_name) if features == "gram" else tower.module
    reads_text = features == FEATURES[0] and chosen.has_text(file.weights)
    captioned = tower.captioned and features == FEATURES[0]
    return TowerEncoder(module, preprocess, reads_text, captioned)


def build_text_from_file(
    state_dict: StateDict,
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
    chosen, file, _ = _identified(state_dict, metadata, library, model_name, config, file_name)
    if chosen.build_text is None:
        raise EncoderFileError(f"{file_name}: {chosen.name} models read no text. Use a CLIP or SigLIP model.")
    _check_installed(chosen, file_name)
    return chosen.build_text(file, folders or TokenizerFolders())


def _check_installed(library: Library, file_name: str) -> None:
    try:
        importlib.import_module(library.module)
    except ImportError as error:
        package = library.package
        raise ImportError(
            f"{file_name} needs the Python package {package}, which is not installed or not working ({error}). Install "
            f"it into ComfyUI's environment (pip install {package}), or use a core CLIP Vision model instead."
        ) from error


def _identified(
    state_dict: StateDict,
    metadata: Mapping[str, str] | None,
    library: str,
    model_name: str,
    config: Mapping[str, Any] | None,
    file_name: str,
) -> tuple[Library, EncoderFile, dict[str, Any] | None]:
    """The file's library, what is known of it, and its own description of itself, where that counts."""
    # CSD's own checkpoints keep their weights one level down.
    inner = state_dict.get("model_state_dict") if isinstance(state_dict, Mapping) else {}
    state_dict = usable(inner if isinstance(inner, Mapping) else state_dict, file_name)
    # What the caller says goes before what the file says.
    description = _self_description(metadata, file_name) if library == "auto" and not model_name else None
    if description is not None:
        library, model_name, config = description["library"], "", description["config"]
    elif library == "auto":
        library = _guessed(state_dict, config, file_name).name
    if library not in tuple(LIBRARIES):  # a file may say anything
        raise EncoderFileError(
            f"{file_name}: unknown library {str(library)[:80]!r}. Choose one of: {', '.join(LIBRARIES)}."
        )
    return LIBRARIES[library], EncoderFile(state_dict, file_name, model_name, config), description


def _self_description(metadata: Mapping[str, str] | None, file_name: str) -> dict[str, Any] | None:
    text = (metadata or {}).get(METADATA_KEY)
    if text is None:
        return None
    description = read_json(text, f"{file_name}: its metadata {METADATA_KEY!r}")
    if not isinstance(description, dict):
        raise EncoderFileError(f"{file_name}: its metadata {METADATA_KEY!r} is not a JSON object.")
    missing = {"library", "config", "image_size", "mean", "std"} - set(description)
    if missing:
        raise EncoderFileError(f"{file_name}: its metadata {METADATA_KEY!r} lacks {', '.join(sorted(missing))}.")
    return description


def _described_preprocess(description: Mapping[str, Any], file_name: str) -> Preprocess:
    size = allowed("image_size", pixels, description["image_size"], file_name)
    mean = statistics(description["mean"], "mean", file_name, MEAN_LEAST)
    return Preprocess((size, size), mean, statistics(description["std"], "std", file_name, STD_LEAST))


def _guessed(state_dict: StateDict, config: Mapping[str, Any] | None, file_name: str) -> Library:
    found = [library for library in LIBRARIES.values() if library.recognises(state_dict, config)]
    if not found:
        needs = "; ".join(
            f"a {name} model needs {library.beside}" for name, library in LIBRARIES.items() if library.beside
        )
        raise EncoderFileError(
            f"{file_name}: cannot tell which library this file belongs to. Set library to one of "
            f"{', '.join(LIBRARIES)}; {needs}."
        )
    return max(found, key=lambda library: library.certainty)  # the first of equals
