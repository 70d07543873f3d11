"""Another page than the host's own: a version of PyPI's comfyui-frontend-package, fetched once and not installed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from bootstrap_host import HostError
from repo_paths import HOSTS

PACKAGE = "comfyui-frontend-package"


def frontend_args() -> list[str]:
    """Arguments by which ComfyUI serves the page that COMFYUI_FRONTEND names, or "newest"; none where it names none."""
    wanted = os.environ.get("COMFYUI_FRONTEND", "")
    if not wanted:
        return []
    return ["--front-end-root", str(bring_frontend(None if wanted == "newest" else wanted)[1])]


def bring_frontend(version: str | None) -> tuple[str, Path]:
    """A version of the page, the newest if None, and the folder that it lies in.

    Raises:
        HostError: it cannot be had.
    """
    if version is not None and (HOSTS / f"frontend-{version}").is_dir():
        return version, HOSTS / f"frontend-{version}" / "static"
    with tempfile.TemporaryDirectory(prefix="frontend-", dir=HOSTS) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
        command += ["--disable-pip-version-check", PACKAGE + (f"=={version}" if version else "")]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            raise HostError(f"pip could not download {PACKAGE} {version or ''}: {done.stderr.strip()}")
        found = wheels[0].name.split("-")[1]
        target = HOSTS / f"frontend-{found}"
        if not target.is_dir():
            with zipfile.ZipFile(wheels[0]) as wheel:
                wheel.extractall(Path(folder) / "unpacked")
            (Path(folder) / "unpacked" / "comfyui_frontend_package").rename(target)
    return found, target / "static"
