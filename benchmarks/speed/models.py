"""Models with all the layers of real ones and next to no width: launches depend on the number of layers alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WIDTH, CONTEXT, WORDS = 32, 64, 77
SD15 = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": WIDTH,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "context_dim": CONTEXT,
    "num_heads": 1,
    "use_spatial_transformer": True,
    "adm_in_channels": None,
    "legacy": False,
}
SDXL = SD15 | {
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
    "use_linear_in_transformer": True,
    "num_classes": "sequential",
    "adm_in_channels": 1280 + 6 * 256,
}
FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": CONTEXT,
    "context_in_dim": CONTEXT,
    "hidden_size": 64,
    "mlp_ratio": 4.0,
    "num_heads": 2,
    "depth": 19,
    "depth_single_blocks": 38,
    "axes_dim": [8, 12, 12],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}


@dataclass(frozen=True)
class Shape:
    """A family's name in core, its layers, the size of the latents it is counted at, and which layers LoRAs are on."""

    family: str
    config: dict[str, Any]
    latent: int
    channels: int
    has_lora: Callable[[str], bool]


def _in_transformers(name: str) -> bool:
    return name.rpartition(".")[2] in ("proj_in", "proj_out") or ".transformer_blocks." in name


SHAPES = {
    "SD1.5": Shape("SD15", SD15, 48, 4, _in_transformers),
    "SDXL": Shape("SDXL", SDXL, 48, 4, _in_transformers),
    "FLUX": Shape("Flux", FLUX, 32, 16, lambda name: "_blocks." in name and "norm" not in name),
}


def model_of(shape: Shape, dtype: Any) -> Any:
    """A ModelPatcher with random weights."""
    import comfy.model_patcher
    import comfy.supported_models
    import torch

    config = shape.config | {"dtype": dtype}
    family = getattr(comfy.supported_models, shape.family)(config)
    family.unet_config = config
    family.set_inference_dtype(dtype, None)
    model = family.get_model({}, device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(noise * p[0].numel() ** -0.5 if p.ndim > 1 else 0.1 * noise + float(name.endswith("weight")))
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, cpu, cpu)


def lora_of(shape: Shape, model: Any, path: Path, rank: int, seed: int, half: bool = False) -> Path:
    """A plain LoRA file for the model's transformer blocks, in float32 or half precision."""
    import torch
    from safetensors.torch import save_file

    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name, module in model.model.diffusion_model.named_modules():
        if shape.has_lora(name) and (hasattr(module, "in_features") or hasattr(module, "kernel_size")):
            out, *inner = module.weight.shape
            prefix = f"diffusion_model.{name}"
            down = torch.randn(rank, *inner, generator=generator)
            tensors[f"{prefix}.lora_down.weight"] = down * down[0].numel() ** -0.5
            up = torch.randn(out, rank, *[1] * (len(inner) - 1), generator=generator)
            tensors[f"{prefix}.lora_up.weight"] = up * 0.1
    save_file({key: tensor.half() for key, tensor in tensors.items()} if half else tensors, path)
    return path


def sample(shape: Shape, model: Any, steps: int, cfg: float, batch: int = 1) -> Any:
    """Core's Euler on square latents, with a positive and, above CFG 1, a negative prompt."""
    import comfy.sample
    import torch

    generator = torch.Generator().manual_seed(1)
    pooled = torch.randn(1, 1280 if shape.family == "SDXL" else CONTEXT, generator=generator)
    prompts = [
        [[torch.randn(1, WORDS, CONTEXT, generator=generator), {"pooled_output": pooled, "guidance": 3.5}]]
        for _ in range(2)
    ]
    latent = torch.zeros(batch, shape.channels, shape.latent, shape.latent)
    noise = comfy.sample.prepare_noise(latent, 0)
    with torch.inference_mode():
        return comfy.sample.sample(
            model, noise, steps, cfg, "euler", "simple", *prompts, latent, disable_pbar=True, seed=0
        )
