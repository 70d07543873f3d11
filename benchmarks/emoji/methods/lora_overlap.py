"""LoRA files that have something in common, as people's have: a part of one third file is in both."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from repo_paths import OUTPUT

FOLDER = OUTPUT / "quality" / "overlapping_loras"


def neighbour(path: Path) -> Path:
    """Another LoRA of the same kind: the next by name in its folder, after the last the first."""
    kind = "_".join(path.stem.split("_")[:2])  # lora_subject, lora_style
    files = sorted(path.parent.glob(f"{kind}_*.safetensors"))
    return files[(files.index(path) + 1) % len(files)]


def overlapping(path: Path, other: Path, share: float) -> Path:
    """The file's deltas plus a share of another's, as one file in an ignored folder; itself if the share is 0.

    path, other: LoRAs of the same linear layers with kohya's keys, of any ranks.
    """
    if share == 0:
        return path
    weights, others = load_file(path), load_file(other)
    made: dict[str, Tensor] = {}
    for layer in (key.removesuffix(".alpha") for key in weights if key.endswith(".alpha")):
        (up, down), (other_up, other_down) = _factors(weights, layer), _factors(others, layer)
        made[f"{layer}.lora_up.weight"] = torch.cat([up, share * other_up], dim=1).contiguous()
        made[f"{layer}.lora_down.weight"] = torch.cat([down, other_down]).contiguous()
        made[f"{layer}.alpha"] = torch.tensor(float(down.shape[0] + other_down.shape[0]))
    FOLDER.mkdir(parents=True, exist_ok=True)
    file = FOLDER / f"{path.stem}_with_{share:g}_of_{other.stem}.safetensors"
    save_file(made, file)
    return file


def _factors(weights: dict[str, Tensor], layer: str) -> tuple[Tensor, Tensor]:
    """``(up, down)`` with ``up @ down`` the layer's delta, float32."""
    up, down = (weights[f"{layer}.lora_{name}.weight"].float() for name in ("up", "down"))
    return up * (float(weights[f"{layer}.alpha"]) / down.shape[0]), down
