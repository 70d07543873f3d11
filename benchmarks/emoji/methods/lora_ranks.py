"""LoRA files cut down to a smaller rank: what a file with less room does beside one with more."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from repo_paths import OUTPUT

FOLDER = OUTPUT / "quality" / "cut_loras"


def cut(path: Path, rank: int) -> Path:
    """The file with each delta's largest singular values only, in an ignored folder; itself if it has no more.

    path: LoRA of linear layers with kohya's keys.
    """
    from lora_conductor.fusion.baking import low_rank

    weights = load_file(path)
    layers = [name.removesuffix(".lora_down.weight") for name in weights if name.endswith(".lora_down.weight")]
    if all(weights[f"{layer}.lora_down.weight"].shape[0] <= rank for layer in layers):
        return path
    made: dict[str, Tensor] = {}
    for layer in layers:
        down, up, alpha = (weights[f"{layer}.{name}"] for name in ("lora_down.weight", "lora_up.weight", "alpha"))
        kept = low_rank((up * (float(alpha) / down.shape[0]), down), rank)
        made[f"{layer}.lora_up.weight"] = kept.up.to(up.dtype).contiguous()
        made[f"{layer}.lora_down.weight"] = kept.down.to(down.dtype).contiguous()
        made[f"{layer}.alpha"] = torch.tensor(float(kept.up.shape[1]))
    FOLDER.mkdir(parents=True, exist_ok=True)
    file = FOLDER / f"{path.stem}_rank{rank}.safetensors"
    save_file(made, file)
    return file
