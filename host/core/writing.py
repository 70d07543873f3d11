"""Files in ComfyUI's output folder: numbered, whole or not there at all, and never in another's place.

Several servers may save into one folder at once. A file is written under a name nobody looks at, and gets its own by a
step that fails if somebody else was faster: then it takes the next number.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths

from .errors import ConductorError
from .files import refuse_unusable_prefix, within


@dataclass(frozen=True)
class Place:
    """Where a file goes: its folder, its name without a number, and the first number that was free."""

    folder: Path
    name: str
    number: int


def place_of(prefix: Any) -> Place:
    """Where core's saving nodes would put a file of that prefix.

    Raises:
        ConductorError: outside of the output folder, by its name or by a link, or in a folder that cannot be made.
    """
    refuse_unusable_prefix(prefix)
    output = folder_paths.get_output_directory()
    prefix = os.path.normpath(prefix)  # core counts wrongly when it ends in a slash
    try:
        if not within(output, Path(output, prefix).parent):
            raise ValueError("it lies outside of the output folder")
        folder, name, number, _, _ = folder_paths.get_save_image_path(prefix, output)
        if not within(output, folder):  # %year% and its like are filled in by now
            raise ValueError("it lies outside of the output folder")
    except Exception as error:  # core raises a bare Exception for places outside
        raise ConductorError(
            f"filename_prefix: '{prefix}' cannot be used ({error}). Name a file below ComfyUI's output folder, such as "
            "loras/my_lora."
        ) from error
    return Place(Path(folder), name, number)


def write_new(place: Place, ending: str, write: Callable[[Path], Any]) -> Path:
    """Write a file under the first free number from the place's on.

    Args:
        place: of the file.
        ending: ".json" for example.
        write: writes the content to the path it is given.

    Returns:
        The file's path.

    Raises:
        OSError, and whatever ``write`` raises: nothing is left behind.
    """
    unfinished = place.folder / f".{uuid.uuid4().hex}.part"
    try:
        write(unfinished)
        with open(unfinished, "rb+") as file:
            os.fsync(file.fileno())
        number = place.number
        while not _published(unfinished, path := place.folder / f"{place.name}_{number:05}_{ending}"):
            number += 1
        return path
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def write_for_now(ending: str, write: Callable[[Path], Any]) -> str:
    """Write a file for the page to show, under a name that says nothing.

    Core's own ``/view`` serves it with ``type=temp``, and core empties that folder when it starts.

    Args:
        ending: ".png" for example.
        write: writes the content to the path it is given.

    Returns:
        The file's name.
    """
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    name = f"lora_conductor_{uuid.uuid4().hex}{ending}"
    write(folder / name)
    return name


def _published(unfinished: Path, path: Path) -> bool:
    """Give a finished file its name; False if that is taken."""
    try:
        os.link(unfinished, path)
        return True
    except FileExistsError:
        return False
    except OSError:
        pass  # no hard links there: exFAT, some network folders
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    try:
        os.replace(unfinished, path)  # the empty file in that place is our own
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise
    return True
