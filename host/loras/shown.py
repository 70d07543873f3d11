"""What the page shows of a LoRA file that somebody has chosen: what is said of it, and where its picture is."""

from __future__ import annotations

import asyncio
import os
from dataclasses import asdict
from typing import Any

import folder_paths

from ..core import ConductorError, model_path, routes_and_web
from .about import about
from .choices import NO_LORA
from .header import read_header

ROUTE = "/lora_conductor/about"
FOLDER = "loras"
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
_COVERS = "ssmd_cover_images"


def shown(name: str) -> dict[str, Any] | None:
    """What the page shows of a file, by the name that ComfyUI lists it under; None where there is no such file.

    ``picture`` is which of core's previews is the file's, by number of the folder and name in it; core serves them, and
    looks for them beside the file and in its header. None where there is none.
    """
    try:
        path = model_path(FOLDER, name, "LoRA")
        size = os.path.getsize(path)
    except (ConductorError, OSError):
        return None
    said = about(path)
    return {
        **asdict(said),
        "name": name,
        "means": said.means,
        "for_prompt": said.for_prompt,
        "size": size,
        "picture": _picture(path),
    }


def _picture(path: str) -> dict[str, Any] | None:
    stem = os.path.splitext(path)[0]
    beside = (stem + middle + ending for middle in (".preview", "") for ending in _PICTURES)
    if not any(map(os.path.isfile, beside)) and _COVERS not in read_header(path).metadata:
        return None
    for index, folder in enumerate(folder_paths.get_folder_paths(FOLDER)):
        if path.startswith(os.path.join(folder, "")):
            return {"folder": index, "name": os.path.relpath(path, folder).replace(os.sep, "/")}
    return None


def answer_about_files() -> None:
    """Have the server tell pages of a file: a GET with its ``name``; what is in no folder of LoRAs is not found."""
    found = routes_and_web()
    if found is None:
        return
    routes, web = found

    @routes.get(ROUTE)
    async def answer(request: Any) -> Any:
        name = request.query.get("name", NO_LORA)
        said = None if name == NO_LORA else await asyncio.to_thread(shown, name)
        return web.Response(status=404) if said is None else web.json_response(said)
