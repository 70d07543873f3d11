"""What the parsers read for: a model of a few layers, its text encoder, and ComfyUI's folders with a file or two."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import comfy.lora
import comfy.sd
import comfy.supported_models
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP

from lora_conductor.host.fusing import load_loras
from lora_conductor.host.loras import LoraChoice

from ...host import tiny
from ..guard import GUARD

BASE = Path(folder_paths.base_path)
LORAS, INPUT = BASE / "models" / "loras", Path(folder_paths.get_input_directory())
ENCODERS, OUTPUT = BASE / "models" / "clip_vision", Path(folder_paths.get_output_directory())
SUBJECT, STYLE = "fuzz_subject.safetensors", "fuzz_style.safetensors"
TEXT = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1"
GUARD.allow(BASE, Path(folder_paths.__file__).parent, Path(__file__).parents[3])


@functools.cache
def model() -> ModelPatcher:
    """A UNet of one level."""
    levels = {"num_res_blocks": [1], "channel_mult": [1], "transformer_depth": [1], "transformer_depth_output": [1, 1]}
    small = {"model_channels": 32, "context_dim": 32, "adm_in_channels": None, "dtype": torch.float32}
    config = {**tiny.UNET, **levels, **small}
    model_config = comfy.supported_models.SD15(config)
    model_config.unet_config = config
    model_config.set_inference_dtype(torch.float32, None)
    made = model_config.get_model({}, device="cpu")
    tiny.randomise(made)
    return tiny.patcher(made)


@functools.cache
def clip() -> CLIP:
    """One layer of a text encoder, in core's own object."""
    weights = torch.nn.Module()
    part = weights
    for name in TEXT.split("."):
        inner = torch.nn.Linear(32, 32) if name == "fc1" else torch.nn.Module()
        part.add_module(name, inner)
        part = inner
    made = CLIP(no_init=True)
    made.patcher, made.cond_stage_model = tiny.patcher(weights), weights
    made.tokenizer, made.layer_idx, made.tokenizer_options = None, None, {}
    made.use_clip_schedule, made.apply_hooks_to_conds = False, None
    return made


@functools.cache
def shapes() -> dict[str, tuple[int, ...]]:
    """Of the layers that LoRAs are for: some linear ones and a convolution."""
    found = tiny.layer_shapes(model())
    chosen = ("attn1.to_q.weight", "attn2.to_v.weight", "proj_in.weight", "ff.net.2.weight")
    return {key: shape for key, shape in found.items() if "middle_block" in key and key.endswith(chosen)}


@functools.cache
def dialects() -> dict[str, list[str]]:
    """Prefixes that core knows for each of these weights."""
    known, _ = _key_maps()
    return {key: [prefix for prefix, target in known.items() if target == key] for key in shapes()}


@functools.cache
def styled() -> ModelPatcher:
    """The model with a LoRA in the role of style; one for the other role lies in the folder of LoRAs."""
    for seed, name in enumerate((SUBJECT, STYLE)):
        tiny.make_lora(LORAS / name, shapes(), seed=seed, size=0.2)
    return load_loras(model(), None, [LoraChoice(STYLE, "style", 0.5, 0.5)])[0]


@contextlib.contextmanager
def known_keys() -> Iterator[None]:
    """Core's maps of keys for the model and the text encoder, made once: they take longer than all the rest."""
    unet, text = _key_maps()
    with (
        mock.patch.object(comfy.lora, "model_lora_keys_unet", lambda *_: dict(unet)),
        mock.patch.object(comfy.lora, "model_lora_keys_clip", lambda *_: dict(text)),
    ):
        yield


@functools.cache
def _key_maps() -> tuple[dict[str, Any], dict[str, Any]]:
    unet = comfy.lora.model_lora_keys_unet(model().model, {})
    return unet, comfy.lora.model_lora_keys_clip(clip().cond_stage_model, {})


def put(path: Path, data: bytes) -> None:
    """Write a file for a parser to read."""
    with GUARD.resting():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


@contextlib.contextmanager
def folder_of(path: Path) -> Iterator[Path]:
    """An empty folder, for one case."""
    with GUARD.resting():
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
    try:
        yield path
    finally:
        with GUARD.resting():
            shutil.rmtree(path, ignore_errors=True)


def printed(*texts: Any) -> None:
    """What is shown to users can be encoded, and is not endless."""
    for text in texts:
        assert len(text) < 500_000, len(text)
        text.encode()
