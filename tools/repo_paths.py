"""Where the developers' tools find and put things, all relative to the repository."""

from __future__ import annotations

from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
VENV = REPO / ".venv"
HOSTS = REPO / ".host"
BUILD = REPO / ".build"
OUTPUT = REPO / "output"
PACKAGE_PATH = BUILD / "pack"  # on sys.path: holds links to packages of this repository, which itself must not be there
WORLD = REPO / "benchmarks" / "emoji"
ASSETS = WORLD / "assets"


def link(target: Path, at: Path) -> None:
    """Make ``at`` a symbolic link to ``target``, replacing an older link; parents are created.

    Raises:
        FileExistsError: ``at`` exists and is not a link.
    """
    at.parent.mkdir(parents=True, exist_ok=True)
    if at.is_symlink():
        if at.resolve() == target.resolve():
            return
        at.unlink()
    at.symlink_to(target, target_is_directory=target.is_dir())


def link_package() -> Path:
    """Make the repository importable as ``lora_conductor``, and ``benchmarks``; return the folder for ``sys.path``.

    The repository cannot be on the path itself: its folder ``nodes`` would stand in for ComfyUI's module.
    """
    link(REPO, PACKAGE_PATH / "lora_conductor")
    link(REPO / "benchmarks", PACKAGE_PATH / "benchmarks")
    return PACKAGE_PATH
