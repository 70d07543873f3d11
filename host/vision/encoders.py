"""Image encoders under ComfyUI's memory management: core CLIP_VISION objects and our own METRIC_ENCODER."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakSet

import comfy.clip_model
import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch

from ...guidance.encoders import (
    EncoderFileError,
    TextTower,
    TowerEncoder,
    build_from_file,
    build_text_from_file,
    read_json,
)
from ...guidance.preprocess import Preprocess
from ..core import ConductorError, logger, unreadable
from .autograd import DifferentiableCall
from .prompts import PromptReader, tokenizer_folders

_warned: WeakSet[Any] = WeakSet()


class MetricEncoder:
    """What a METRIC_ENCODER output holds: an encoder of ours with the ModelPatcher through which core moves it.

    prompts: its file's text half, None if there is none.
    """

    def __init__(self, encoder: TowerEncoder, prompts: PromptReader | None = None) -> None:
        self.encoder = encoder
        self.prompts = prompts
        self.load_device = comfy.model_management.text_encoder_device()
        self.patcher = comfy.model_patcher.ModelPatcher(
            encoder.module,
            load_device=self.load_device,
            offload_device=comfy.model_management.text_encoder_offload_device(),
        )


def load_metric_encoder(
    path: str, library: str = "auto", model_name: str = "", features: str = "embedding"
) -> MetricEncoder:
    """Load an open_clip, timm or transformers checkpoint (safetensors, or .pt read with weights_only).

    features: see `build_from_file`. Raises ConductorError naming the file if it cannot be read or holds no such model.
    """
    file = Path(path)

    def text() -> TextTower:
        weights, metadata = _read(file)
        folders = tokenizer_folders(file)
        return build_text_from_file(weights, metadata, library, model_name, _config_beside(file), file.name, folders)

    # Weights made under inference mode could not be used for gradients later.
    with torch.inference_mode(False), torch.no_grad():
        weights, metadata = _read(file)
        try:
            encoder = build_from_file(weights, metadata, library, model_name, _config_beside(file), file.name, features)
        except (EncoderFileError, ImportError) as error:
            raise ConductorError(str(error)) from error
    return MetricEncoder(encoder, PromptReader(text) if encoder.reads_text else None)


def _read(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str] | None]:
    try:
        return comfy.utils.load_torch_file(str(file), safe_load=True, return_metadata=True)
    except Exception as error:  # whatever the format's reader raises for a broken file
        raise ConductorError(
            f"{file.name}: cannot be read as a checkpoint: {unreadable(error)}. Download it again."
        ) from error


def _config_beside(file: Path) -> dict[str, Any] | None:
    """The config.json of a transformers model folder, with its preprocessor settings under "preprocessor"."""
    config = _read_object(file, "config.json")
    if config is not None:
        config["preprocessor"] = _read_object(file, "preprocessor_config.json")
    return config


def _read_object(file: Path, name: str) -> dict[str, Any] | None:
    path = file.with_name(name)
    if not path.is_file():
        return None
    what = f"{name} beside {file.name}"
    found = read_json(path, what)
    if not isinstance(found, dict):
        raise EncoderFileError(f"{what} is not a JSON object. Download it again.")
    return found


class RunEncoder(Protocol):
    """An encoder opened for one sampling run."""

    patcher: Any

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """images [B, 3, H, W] in [0, 1], any device -> [B, D] float32 on the encoder's device."""
        ...

    def close(self) -> None:
        """Free the copies of weights made for this run."""
        ...


def open_encoder(source: Any, input_name: str) -> RunEncoder:
    """Open a CLIP_VISION or METRIC_ENCODER for a run. Raises ConductorError for anything else."""
    own = isinstance(source, MetricEncoder)
    if own or (hasattr(source, "model") and hasattr(source, "patcher") and hasattr(source, "image_mean")):
        _warn_of_clip_as_dino(source, input_name)
        return _OwnEncoder(source) if own else _CoreEncoder(source)
    raise ConductorError(
        f"{input_name}: {type(source).__name__} is not an image encoder. Connect Load CLIP Vision or Metric Encoder "
        "Loader."
    )


def _warn_of_clip_as_dino(source: Any, input_name: str) -> None:
    """Once for an encoder, which is opened several times in a run."""
    if isinstance(source, MetricEncoder):
        clip = source.encoder.captioned
    else:
        clip = isinstance(source.model, comfy.clip_model.CLIPVisionModelProjection)
    if clip and input_name == "dino_encoder" and source not in _warned:
        _warned.add(source)
        logger.warning(
            f"LoRA Conductor: {input_name}: this is a CLIP-type encoder. Subjects are compared better by a DINO-type "
            "one; CLIP-type encoders are for clip_encoder."
        )


class _OwnEncoder:
    def __init__(self, source: MetricEncoder) -> None:
        self.patcher = source.patcher
        self._encoder = source.encoder
        self._device = source.load_device
        self._forward = DifferentiableCall(source.encoder.module, source.encoder.module, self._device)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        return self._encoder.embed(images.to(self._device), self._forward)

    def close(self) -> None:
        self._forward.close()


class _CoreEncoder:
    """Core's own encode_image rounds to 8 bit and moves its results to the CPU; this goes round it."""

    def __init__(self, source: Any) -> None:
        self.patcher = source.patcher
        self._source = source
        # Core's CLIP layers add their residuals in place.
        self._forward = DifferentiableCall(source.model, self._model_output, source.load_device, overwrites=True)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        images = images.to(device=self._source.load_device, dtype=torch.float32)
        embeddings = self._forward(self._preprocess(images.shape[-2:])(images)).float()
        # SigLIP comes without its pooling head in core: its tokens are averaged.
        return embeddings.mean(dim=1) if embeddings.ndim == 3 else embeddings

    def close(self) -> None:
        self._forward.close()

    def _model_output(self, pixel_values: torch.Tensor) -> torch.Tensor:
        # Third output: the projected embedding of CLIP, the pooled class token of DINO.
        return self._source.model(pixel_values=pixel_values, intermediate_output=-2)[2]

    def _preprocess(self, image_size: tuple[int, ...]) -> Preprocess:
        source = self._source
        mean, std = tuple(source.image_mean), tuple(source.image_std)
        if source.image_size > 0:
            return Preprocess((source.image_size, source.image_size), mean, std)
        # SigLIP 2 NaFlex keeps the aspect ratio and fits a budget of patches.
        resolution: Callable[..., tuple[int, int]] = comfy.clip_model.siglip2_flex_calc_resolution
        size = resolution(*image_size, source.config.get("patch_size", 16), source.config.get("num_patches", 256))
        return Preprocess(size, mean, std, crop=False, mode="bilinear")
