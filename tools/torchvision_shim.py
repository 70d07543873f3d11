"""Make ``import torchvision`` and ``import torchaudio`` work beside a torch they were not compiled for.

Developers' tool only: users of the pack have matching builds. Where a package index carries a CPU build of torch but
only CUDA builds of its two companions, their compiled extensions do not load: torchvision then dies on the missing
operator ``torchvision::nms`` and torchaudio on an OSError. ComfyUI imports both at start-up but needs nothing compiled
in them for pictures.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

# The two operators whose fake kernels torchvision registers whether or not its extension was loaded.
_TORCHVISION_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_kept_alive: list[Any] = []  # a torch Library takes its operators along when it is collected


def install() -> None:
    """From now on, repair either package at its first import, if its extension does not load. Idempotent.

    Nothing is imported here: ComfyUI complains when torch is imported before its own start-up code has run.
    """
    if not any(isinstance(finder, _RepairAtImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _RepairAtImport())


class _RepairAtImport(MetaPathFinder):
    """Finds nothing itself; being asked for a package is the moment to repair it."""

    def __init__(self) -> None:
        self._pending: dict[str, tuple[str, Callable[[Path], None]]] = {
            "torchvision": ("_C*", _declare_torchvision_operators),
            "torchaudio": ("lib/_torchaudio*", _skip_torchaudio_extension),
        }

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        extension, repair = self._pending.pop(fullname, ("", None))
        if repair is not None:
            package = PathFinder.find_spec(fullname, path)
            if package is not None and package.origin is not None:
                folder = Path(package.origin).parent
                if not all(_loads(library) for library in folder.glob(extension)):
                    repair(folder)
        return None


def _loads(library: Path) -> bool:
    import torch

    try:
        torch.ops.load_library(str(library))
    except OSError:
        return False
    return True


def _declare_torchvision_operators(folder: Path) -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _TORCHVISION_SCHEMAS:
        library.define(schema)
    _kept_alive.append(library)


def _skip_torchaudio_extension(folder: Path) -> None:
    """Load torchaudio's own loader ahead of the package and make it find no extension, as where none is shipped."""
    name = "torchaudio._extension.utils"
    spec = importlib.util.spec_from_file_location(name, folder / "_extension" / "utils.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{folder}: this version of torchaudio is not one that the shim knows")
    utils = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(utils)
    vars(utils)["_load_lib"] = lambda library: False
    sys.modules[name] = utils
