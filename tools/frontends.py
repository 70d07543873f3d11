"""Another page than the host's own: COMFYUI_FRONTEND names a version of PyPI's comfyui-frontend-package, or "newest".

Fetched once, without being installed, into ``.build/frontends``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from repo_paths import BUILD

PACKAGE = "comfyui-frontend-package"


def frontend_args() -> list[str]:
    """Arguments by which ComfyUI serves the page that COMFYUI_FRONTEND asks for; none where it asks for none."""
    wanted = os.environ.get("COMFYUI_FRONTEND", "")
    return ["--front-end-root", str(fetched(wanted))] if wanted else []


def fetched(version: str) -> Path:
    """The folder of a page. version: of the package, or "newest"."""
    exact = "" if version == "newest" else f"=={version}"
    folder = BUILD / "frontends" / version
    page = folder / "comfyui_frontend_package" / "static"
    if not page.is_dir():
        with tempfile.TemporaryDirectory() as wheels:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", wheels]
            subprocess.run([*command, f"{PACKAGE}{exact}"], check=True)
            (wheel,) = Path(wheels).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)
    return page
