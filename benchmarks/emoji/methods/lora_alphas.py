"""LoRA files whose layers have alphas of their own: what a file does that is loud here and faint there."""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors.torch import load_file, save_file

from repo_paths import OUTPUT

FOLDER = OUTPUT / "quality" / "uneven_loras"


def factor(name: str, most: float) -> float:
    """A number between 1 / most and most, by chance, its logarithm as likely anywhere; the same for a name always."""
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32
    return float(most ** (2 * share - 1))


def uneven(path: Path, most: float) -> Path:
    """The file with each layer's alpha times a :func:`factor` of its own, in an ignored folder; itself if most is 1.

    path: LoRA with kohya's keys.
    """
    if most == 1:
        return path
    weights = {
        key: value * factor(f"{path.stem}:{key}", most) if key.endswith(".alpha") else value
        for key, value in load_file(path).items()
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    file = FOLDER / f"{path.stem}_uneven{most:g}.safetensors"
    save_file(weights, file)
    return file
