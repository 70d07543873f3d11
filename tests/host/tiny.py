"""Tiny models of real families, built from the host's own classes, and LoRA files for them."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.supported_models
import comfy.utils
import folder_paths
import pytest
import torch
from safetensors.torch import save_file

WORLD_MODEL = "emoji_tinyflux_fp16.safetensors"
KEPT = re.compile(r"(double_blocks\.0|single_blocks\.[01])\.")
# Of an SD1.5-shaped UNet, two levels deep.
UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 48,
    "num_heads": 4,
    "num_head_channels": -1,
    "use_spatial_transformer": True,
    "legacy": False,
}


def randomise(module: torch.nn.Module, seed: int = 0) -> None:
    """Fill weights in place; the host's operations leave them uninitialised."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            fan_in = p[0].numel() if p.ndim > 1 else 1
            scale = fan_in**-0.5 if p.ndim > 1 else 0.05
            noise = torch.randn(p.shape, generator=generator) * scale
            p.copy_((1 + noise) if p.ndim == 1 and name.endswith("weight") else noise)


def patcher(model: torch.nn.Module) -> comfy.model_patcher.ModelPatcher:
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def world_flux(dtype: torch.dtype = torch.float32) -> comfy.model_patcher.ModelPatcher:
    """The small world's trained FLUX-shaped model, through the stock loader."""
    path = folder_paths.get_full_path_or_raise("diffusion_models", WORLD_MODEL)
    return comfy.sd.load_diffusion_model(path, model_options={"dtype": dtype})


def first_blocks() -> dict[str, torch.Tensor]:
    """That model's weights with its first block of each kind, and a second single one: a third of its time."""
    weights = comfy.utils.load_torch_file(folder_paths.get_full_path_or_raise("diffusion_models", WORLD_MODEL))
    return {name: w for name, w in weights.items() if "_blocks." not in name or KEPT.search(name)}


def tiny_flux(dtype: torch.dtype = torch.float32) -> comfy.model_patcher.ModelPatcher:
    """The model of :func:`first_blocks`."""
    return comfy.sd.load_diffusion_model_state_dict(first_blocks(), model_options={"dtype": dtype})


THIN = {"transformer_depth": [1, 0], "transformer_depth_output": [1, 0, 0, 0]}
"""One transformer each on the way down, below, and up."""


def tiny_unet(dtype: torch.dtype = torch.float32, *, thin: bool = True) -> comfy.model_patcher.ModelPatcher:
    """An SD1.5-shaped UNet with random weights, of three transformers or of seven."""
    depths = THIN if thin else {}
    config = {**UNET, **depths, "model_channels": 64, "context_dim": 64, "adm_in_channels": None, "dtype": dtype}
    model_config = comfy.supported_models.SD15(config)
    model_config.unet_config = config
    model_config.set_inference_dtype(dtype, None)
    model = model_config.get_model({}, device="cpu")
    randomise(model)
    return patcher(model)


def conditioning(model: comfy.model_patcher.ModelPatcher, seed: int = 0, batch: int = 1) -> list:
    config = model.model.model_config.unet_config
    width = config.get("context_dim") or config["context_in_dim"]
    generator = torch.Generator().manual_seed(seed)
    context = torch.randn(batch, 4, width, generator=generator)
    pooled = torch.randn(batch, config.get("vec_in_dim") or width, generator=generator)
    return [[context, {"pooled_output": pooled}]]


def latent(model: comfy.model_patcher.ModelPatcher, batch: int = 1, size: int = 8) -> torch.Tensor:
    return torch.zeros(batch, model.model.latent_format.latent_channels, size, size)


def sample(
    model: comfy.model_patcher.ModelPatcher, *, steps: int = 1, cfg: float = 1.0, batch: int = 1, seed: int = 0, **kw
) -> torch.Tensor:
    """Sample through the host's own ``comfy.sample.sample``; one step at cfg 1 is one forward pass."""
    empty = latent(model, batch)
    noise = kw.pop("noise", None)
    if noise is None:
        noise = comfy.sample.prepare_noise(empty, seed)
    arguments = {
        "sampler_name": "euler",
        "scheduler": "simple",
        "positive": conditioning(model, 1),
        "negative": conditioning(model, 2),
        "latent_image": empty,
        "disable_pbar": True,
        "seed": seed,
        **kw,
    }
    with torch.inference_mode():
        return comfy.sample.sample(model, noise, steps, cfg, **arguments)


def layer_shapes(model: comfy.model_patcher.ModelPatcher, conv: bool = True) -> dict[str, tuple[int, ...]]:
    """Weight keys of all linear and convolution layers of the diffusion model, with shapes."""
    shapes = {}
    for name, module in model.model.diffusion_model.named_modules():
        is_layer = hasattr(module, "in_features") or (conv and hasattr(module, "kernel_size"))
        if is_layer and hasattr(module, "weight"):
            shapes[f"diffusion_model.{name}.weight"] = tuple(module.weight.shape)
    return shapes


def make_lora(
    path: Path, shapes: dict[str, tuple[int, ...]], *, rank: int = 4, seed: int = 0, alpha: float | None = 2.0, size=0.5
) -> Path:
    """A plain LoRA / LoCon file in core's generic dialect for the given weights."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, shape in shapes.items():
        prefix = key.removesuffix(".weight")
        fan_in = torch.Size(shape[1:]).numel()
        down = torch.randn(rank, *shape[1:], generator=generator) * fan_in**-0.5
        up = torch.randn(shape[0], rank, *([1] * (len(shape) - 2)), generator=generator) * size
        tensors[f"{prefix}.lora_down.weight"], tensors[f"{prefix}.lora_up.weight"] = down, up
        if alpha is not None:
            tensors[f"{prefix}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path)
    return path


def forget_other_models() -> None:
    """What another file's tests still hold is no concern of those that look at core's list of loaded models."""
    gc.collect()
    comfy.model_management.unload_all_models()
    comfy.model_management.current_loaded_models.clear()


def partly_loaded(monkeypatch: pytest.MonkeyPatch, share: float) -> list[tuple[bool, float]]:
    """Core decides how much fits when it loads a model; from now on it is told that ``share`` of it does.

    Returns:
        For every model that was loaded, whether core took it for partly loaded, and how much of it was.
    """
    comfy.model_management.unload_all_models()
    load, told = comfy.model_management.LoadedModel.model_load, []

    def partly(loaded, lowvram_model_memory=0, force_patch_weights=False):
        budget = max(0.1, share * loaded.model.model_size())  # as core writes "nothing at all"
        real = load(loaded, budget, force_patch_weights=force_patch_weights)
        told.append((real.model_lowvram, real.model_loaded_weight_memory / loaded.model.model_size()))
        return real

    monkeypatch.setattr(comfy.model_management.LoadedModel, "model_load", partly)
    return told


def in_turn(fixture: str, models: Mapping[str, Any], name: str, values: Iterable[str]) -> pytest.MarkDecorator:
    """Each value once, on one model after the other: where all of them on every model would take long and say no more.

    Args:
        fixture: that makes the model of what ``models`` has.
        models: by the names that tests are called by.
        name: of the test's other argument.
    """
    given = list(models.items())
    turns = [(*given[i % len(given)], value) for i, value in enumerate(values)]
    cases = [pytest.param(model, value, id=f"{title}-{value}") for title, model, value in turns]
    return pytest.mark.parametrize((fixture, name), cases, indirect=[fixture])


def core_stacked(model, *loras: tuple[Path, float]):
    """Core's own loader, stacked: the reference for `sum`."""
    for path, strength in loras:
        model, _ = comfy.sd.load_lora_for_models(model, None, comfy.utils.load_torch_file(str(path)), strength, 0)
    return model


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Max abs difference over the range of the reference ``b``."""
    return float((a - b).abs().max() / (b.max() - b.min()))
