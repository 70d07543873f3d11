"""LoRA files made louder: what a file that was trained too hard does beside one that was not."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file

from repo_paths import OUTPUT

FOLDER = OUTPUT / "quality" / "loud_loras"


def louder(path: Path, times: float) -> Path:
    """The file with all it does multiplied, in an ignored folder; itself where that changes nothing.

    path: LoRA of linear layers with kohya's keys.
    """
    if times == 1:
        return path
    weights = {
        key: value * times if key.endswith(".lora_up.weight") else value for key, value in load_file(path).items()
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    file = FOLDER / f"{path.stem}_times{times:g}.safetensors"
    save_file(weights, file)
    return file
