"""Names of files that came from outside, as paths in the folder they are meant for, or a named error.

Core checks the values of menus, but not what is linked to them; and how far it looks at paths differs by its version.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import folder_paths

from .errors import ConductorError
from .printable import printable

MOST_OF_A_NAME = 4096  # characters
MOST_FOLDERS = 64  # in each other: every one of them is made, and looked at


def model_path(folder: str, name: Any, where: str) -> str:
    """Path of a file in one of ComfyUI's folders of models; links in those folders may lead anywhere.

    Args:
        folder: as core calls it, "loras" for example.
        name: of the file, as the folder lists it.
        where: which input named it, for the error.

    Raises:
        ConductorError: it is no name of a file in that folder.
    """
    _refuse_other_than_names(name, where)
    path = None
    if not _leads_out(name):
        path = folder_paths.get_full_path(folder, name) or folder_paths.get_full_path(folder, with_own_separators(name))
    if path is None:
        raise ConductorError(
            f"{where} '{name}' is not in ComfyUI's {folder} folder. Put it there, or pick another one."
        )
    return path


def with_own_separators(name: str) -> str:
    """A name in a subfolder as this system writes it; workflows come from others."""
    return name.replace("/" if os.sep == "\\" else "\\", os.sep)


def annotated_path(name: Any, where: str) -> Path:
    """Path of a file that core would list as "name [output]" or "name [input]", in that folder and nowhere else.

    Raises:
        ConductorError: it lies outside of the folder, by its name or by a link, or is no file.
    """
    _refuse_other_than_names(name, where)
    folder = folder_paths.get_input_directory()
    for kind in ("output", "input", "temp"):
        if name.endswith(f" [{kind}]"):
            name, folder = name.removesuffix(f" [{kind}]"), folder_paths.get_directory_by_type(kind)
            break
    path = Path(folder, name)
    if _leads_out(name) or not within(folder, path):
        raise ConductorError(f"{where} '{name}' lies outside of {folder}. Copy the file there and pick it.")
    if not path.is_file():
        raise ConductorError(
            f"{where} '{name}' cannot be opened: there is no such file in {folder}. Pick another file."
        )
    return path


def refuse_unusable_prefix(prefix: Any) -> None:
    """Whether a file may be saved under a prefix, as far as its characters say.

    Raises:
        ConductorError: it is no text, or no name of a file anywhere.
    """
    _refuse_other_than_names(prefix, "filename_prefix:")
    stream = os.name == "nt" and ":" in os.path.splitdrive(prefix)[1]  # of a file, which nobody would find
    if stream or prefix != printable(prefix) or "\n" in prefix or "\t" in prefix:
        raise ConductorError(
            f"filename_prefix: '{prefix}' holds characters that a file's name cannot have everywhere. Choose another "
            "name, such as loras/my_lora."
        )
    if len([part for part in re.split(r"[/\\]", prefix) if part not in ("", ".")]) > MOST_FOLDERS:
        raise ConductorError(
            f"filename_prefix: '{prefix[:80]}...' is in more than {MOST_FOLDERS} folders. Choose another name, such as "
            "loras/my_lora."
        )


def within(folder: str | Path, path: str | Path) -> bool:
    """Whether a path lies in a folder once all links are followed."""
    try:
        folder, path = os.path.realpath(folder), os.path.realpath(path)
        return os.path.commonpath((folder, path)) == folder
    except ValueError:  # other drives, or characters that no path can have
        return False


def _refuse_other_than_names(name: Any, where: str) -> None:
    if not isinstance(name, str):
        raise ConductorError(f"{where} a name is expected, got {type(name).__name__}. Pick a file, or link a text.")
    if not name or len(name) > MOST_OF_A_NAME or "\0" in name:
        raise ConductorError(f"{where} {name[:80]!r} is no name of a file. Pick another one.")
    if re.search("[\ud800-\udfff]", name):  # on Linux, bytes that are no UTF-8; no library opens such a file
        raise ConductorError(f"{where} '{name}' holds characters that are no text. Rename the file.")


def _leads_out(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return ".." in parts or os.path.isabs(name) or bool(os.path.splitdrive(name)[0])
