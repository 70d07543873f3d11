"""What a published version holds: tracked files less those of .comfyignore, as ``comfy node pack`` packs them.

archive.py                    the list with sizes, and the size of the zip
archive.py --zip node.zip     writes the zip too
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import zipfile
from pathlib import Path

from repo_paths import REPO

IGNORED = REPO / ".comfyignore"


class ArchiveError(RuntimeError):
    """The list cannot be had; the message says why."""


def archived(root: Path = REPO) -> list[Path]:
    """The files of the archive, relative to the repository, by name.

    Raises:
        ArchiveError: it is no git repository.
    """
    tracked = set(_git(root, "ls-files", "--cached"))
    left_out = set(_git(root, "ls-files", "--cached", "--ignored", f"--exclude-from={root / IGNORED.name}"))
    return sorted(Path(name) for name in tracked - left_out if (root / name).is_file())


def packed(files: list[Path], root: Path = REPO) -> bytes:
    """A zip of them."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(root / file, file.as_posix())
    return buffer.getvalue()


def _git(root: Path, *arguments: str) -> list[str]:
    done = subprocess.run(["git", *arguments, "-z"], cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise ArchiveError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return [name for name in done.stdout.split("\0") if name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zip", type=Path, help="write the archive here")
    parser.add_argument("--names", action="store_true", help="nothing but names")
    parser.add_argument("--rooms", action="store_true", help="one line a folder instead of a file")
    options = parser.parse_args()
    try:
        files = archived()
    except ArchiveError as error:
        sys.exit(f"error: {error}")
    if options.names:
        print(*(file.as_posix() for file in files), sep="\n")
        return
    sizes: dict[str, int] = {}
    for file in files:
        name = f"{file.parts[0]}/" if options.rooms and len(file.parts) > 1 else file.as_posix()
        sizes[name] = sizes.get(name, 0) + (REPO / file).stat().st_size
    for name, size in sizes.items():
        print(f"{size:>9}  {name}")
    archive = packed(files)
    print(f"{sum(sizes.values()):>9}  in {len(files)} files; {len(archive)} bytes zipped")
    if options.zip:
        options.zip.write_bytes(archive)


if __name__ == "__main__":
    main()
