"""A base directory for a ComfyUI of our own: ``main.py --base-directory BASE``.

Custom nodes, models, input, output, user data and database of a run live there, so neither the pristine tree nor a
ComfyUI that COMFYUI_PATH points at is written to.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from repo_paths import BUILD, HOSTS, REPO, WORLD, link

MODEL_FOLDERS = ("diffusion_models", "vae", "loras", "clip_vision", "text_encoders", "checkpoints")
PACKED, UNPACKED = "_fp8_e4m3fn.safetensors", "_fp16.safetensors"


def make_base(directory: Path, *, pack: bool = True, world: bool = True) -> Path:
    """Create or refresh a base directory and return it.

    Args:
        directory: where; see ``named_base`` for the usual places.
        pack: link this pack into ``custom_nodes``.
        world: link the small world's models and its node pack, and copy its pictures into ``input``.

    Model folders are real folders holding links to files, so a caller can add models without touching the assets.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("custom_nodes", "input", "output", "temp", "user", *(f"models/{f}" for f in MODEL_FOLDERS)):
        (directory / name).mkdir(parents=True, exist_ok=True)
    if pack:
        link(REPO, directory / "custom_nodes" / "lora-conductor")
    if world:
        _add_world(directory)
    return directory


def named_base(purpose: str) -> Path:
    """The base directory that tools share for one purpose, e.g. ``.host/base-demo``."""
    return HOSTS / f"base-{purpose}"


def _add_world(directory: Path) -> None:
    if (WORLD / "world_nodes").is_dir():
        link(WORLD / "world_nodes", directory / "custom_nodes" / "emoji-world")
    assets = WORLD / "assets"
    for folder in MODEL_FOLDERS:
        for old in (directory / "models" / folder).iterdir():
            if old.is_symlink() and not old.exists():
                old.unlink()
        for asset in sorted((assets / folder).glob("*.safetensors")):
            file = _unpacked(asset) if asset.name.endswith(PACKED) else asset
            link(file, directory / "models" / folder / file.name)
    for picture in sorted((assets / "pictures").rglob("*.png")):
        shutil.copy2(picture, directory / "input" / picture.name)


def _unpacked(file: Path) -> Path:
    """The same weights in float16, made once.

    ComfyUI would keep a model whose file is FP8 in FP8: what core merges into it would then be rounded, and each step
    would cast every weight.
    """
    made = BUILD / "world" / file.name.replace(PACKED, UNPACKED)
    if not made.exists() or made.stat().st_mtime < file.stat().st_mtime:
        from safetensors.torch import load_file, save_file

        made.parent.mkdir(parents=True, exist_ok=True)
        part = made.with_suffix(f".{os.getpid()}")  # others may be making it at the same time
        save_file({name: value.half() for name, value in load_file(file).items()}, part, {"format": "pt"})
        os.replace(part, made)
    return made
