"""Reading LoRA files from the disk."""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import comfy.utils
import torch
from torch import Tensor

from ..core import ConductorError, Progress

CHUNK = 1 << 22  # bytes hashed at a time


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file's tensors, as read.

    Attributes:
        name: as the user chose it.
        path: where it lies.
        digest: hash of the file's content.
        tensors: by the file's own keys, on the CPU.
        broken: keys of tensors that hold NaN or infinite values.
    """

    name: str
    path: str
    digest: str
    tensors: dict[str, Tensor] = field(repr=False)
    broken: frozenset[str] = frozenset()

    def refuse_broken(self, applied: set[str], refused: set[str]) -> None:
        """Refuse the file if what is used of it is not finite.

        Args:
            applied: keys that are applied. Alphas are no reason among them: what uses them has checked them.
            refused: keys that belong to the model but cannot be applied.

        Raises:
            ConductorError: it is not.
        """
        spoiled = {key for key in applied & self.broken if not key.endswith(".alpha")} | (refused & self.broken)
        if spoiled:
            raise ConductorError(
                f"LoRA '{self.name}' holds NaN or infinite values in {len(spoiled)} of {len(self.tensors)} tensors "
                f"(first: {min(spoiled)}). The file is damaged or its training diverged: use another checkpoint of it."
            )


def read_lora(name: str, path: str) -> LoraFile:
    """Read a LoRA file; the last few files are kept, by path, modification time and size.

    Raises:
        ConductorError: the file is missing, truncated, no LoRA file or unreadable.
    """
    try:
        stat = os.stat(path)
    except OSError as error:
        raise ConductorError(
            f"LoRA '{name}' cannot be opened: {error}. Pick another file or restore this one."
        ) from error
    return _read_cached(name, path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4)
def _read_cached(name: str, path: str, mtime_ns: int, size: int) -> LoraFile:
    if size == 0:
        raise ConductorError(f"LoRA '{name}' is an empty file. Download it again.")
    try:
        tensors = comfy.utils.load_torch_file(path, safe_load=True)
    except Exception as error:
        raise ConductorError(
            f"LoRA '{name}' cannot be read ({error}). The file is damaged, cut off or not a LoRA: download it again."
        ) from error
    tensors = {key: value for key, value in tensors.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ConductorError(f"LoRA '{name}' holds no tensors. Is it a LoRA file?")
    progress = Progress(len(tensors) + math.ceil(size / CHUNK))
    broken = frozenset(key for key, value in tensors.items() if not _finite(value, progress))
    with open(path, "rb") as file:
        digest = _digest(file, progress)
    return LoraFile(name, path, digest, tensors, broken)


def _finite(value: Tensor, progress: Progress) -> bool:
    progress.step()
    if not value.is_floating_point():
        return True
    # float8 has no isfinite of its own.
    return bool(torch.isfinite(value if value.element_size() > 1 else value.float()).all())


def _digest(file: Any, progress: Progress) -> str:
    value = hashlib.sha256()
    for chunk in iter(lambda: file.read(CHUNK), b""):
        value.update(chunk)
        progress.step()
    return value.hexdigest()
