"""Reading LoRA files from the disk."""

from __future__ import annotations

import hashlib
import math
import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import comfy.utils
import torch
from torch import Tensor

from ...fusion.adapters import peak
from ..core import ConductorError, Progress, unreadable

CHUNK = 1 << 22  # bytes hashed at a time
MAX_DIMENSIONS = 8  # a convolution's weight has five
# What a file may become in memory: so many times its size, and a little that is always allowed.
MAX_GROWTH, ALWAYS_ALLOWED = 10, 1 << 20


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file's tensors, as read.

    Attributes:
        name: as the user chose it.
        path: where it lies.
        digest: hash of the file's content.
        tensors: by the file's own keys, on the CPU. Zeros stand for those that are unusable.
        unusable: entries that nobody can apply, with the reason.
    """

    name: str
    path: str
    digest: str
    tensors: dict[str, Tensor] = field(repr=False)
    unusable: dict[str, str] = field(default_factory=dict, repr=False)

    def not_finite(self, keys: Iterable[str]) -> list[str]:
        """Those of the keys whose tensors hold NaN or infinite values."""
        return [key for key in keys if key in self.tensors and not _finite(self.tensors[key])]


def read_lora(name: str, path: str) -> LoraFile:
    """Read a LoRA file; the last few files are kept, by path, modification time and size.

    Values are not looked at here: what nobody uses may hold anything.

    Raises:
        ConductorError: the file is missing, truncated, no LoRA file or unreadable.
    """
    try:
        stat = os.stat(path)
        return _read_cached(name, path, stat.st_mtime_ns, stat.st_size)
    except OSError as error:
        raise ConductorError(
            f"LoRA '{name}' cannot be opened: {error.strerror or type(error).__name__}. Pick another file or restore "
            "this one."
        ) from error


@lru_cache(maxsize=4)
def _read_cached(name: str, path: str, mtime_ns: int, size: int) -> LoraFile:
    if size == 0:
        raise ConductorError(f"LoRA '{name}' is an empty file. Download it again.")
    limit = MAX_GROWTH * size + ALWAYS_ALLOWED
    if _unpacked_size(path) > limit:
        raise ConductorError(_too_large(name))
    try:
        found = comfy.utils.load_torch_file(path, safe_load=True)
    except OSError:
        raise
    except Exception as error:
        raise ConductorError(
            f"LoRA '{name}' cannot be read ({unreadable(error)}). The file is damaged, cut off or not a LoRA: download "
            "it again."
        ) from error
    entries = dict(found) if isinstance(found, dict) else {}
    unusable = {_printable(key): why for key, value in entries.items() if (why := _fault(key, value)) is not None}
    tensors = {
        key: torch.zeros(()) if key in unusable else value for key, value in entries.items() if isinstance(key, str)
    }
    tensors = {key: value for key, value in tensors.items() if _printable(key) == key}
    if len(unusable) == len(entries):
        detail = f": {next(iter(unusable))} is unusable, because {next(iter(unusable.values()))}" if unusable else ""
        raise ConductorError(f"LoRA '{name}' holds no tensors{detail}. Is it a LoRA file?")
    if sum(value.numel() * value.element_size() for value in tensors.values()) > limit:
        raise ConductorError(_too_large(name))
    progress = Progress(math.ceil(size / CHUNK))
    with open(path, "rb") as file:
        digest = _digest(file, progress)
    return LoraFile(name, path, digest, tensors, unusable)


def _unpacked_size(path: str) -> int:
    """Of what lies packed in PyTorch's own format, which is a zip archive; 0 for other files."""
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(part.file_size for part in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return 0


def _too_large(name: str) -> str:
    return (
        f"LoRA '{name}' would be more than {MAX_GROWTH} times larger in memory than on the disk, as no LoRA is: use "
        "another file."
    )


def _printable(key: Any) -> str:
    return str(key).encode("utf-8", "backslashreplace").decode()


def _fault(key: Any, value: Any) -> str | None:
    """Why nobody can apply an entry of a file."""
    if not isinstance(key, str) or _printable(key) != key:
        return "its name is no text"
    if not isinstance(value, Tensor):
        return f"it is a {type(value).__name__}, not a tensor"
    if value.is_meta:
        return "it has a shape, but no values"
    if value.layout != torch.strided or value.is_quantized or value.is_nested:
        return "it is not stored as plain numbers"
    if value.ndim > MAX_DIMENSIONS:
        return f"it has {value.ndim} dimensions"
    if value.is_complex():
        return "its numbers are complex"
    if key.endswith(".alpha") and value.numel() != 1:
        return f"an alpha is one number, not a tensor of shape {tuple(value.shape)}"
    held, wanted = value.untyped_storage().nbytes(), value.numel() * value.element_size()
    if wanted > max(held, ALWAYS_ALLOWED):
        return f"its {held} bytes are repeated to {wanted}"
    return None


def _finite(value: Tensor) -> bool:
    return not value.is_floating_point() or math.isfinite(peak(value))


def _digest(file: Any, progress: Progress) -> str:
    value = hashlib.sha256()
    for chunk in iter(lambda: file.read(CHUNK), b""):
        value.update(chunk)
        progress.step()
    return value.hexdigest()
