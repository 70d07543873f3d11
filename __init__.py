"""LoRA Conductor: this subject, in that style. ComfyUI entry point; wiring only."""

from __future__ import annotations

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """The extension ComfyUI asks for. Imported here so that the libraries work without ComfyUI."""
    from comfy_api.latest import ComfyExtension

    from .host.core import answer_pages
    from .host.loras import answer_about_files
    from .nodes import NODES

    class LoraConductor(ComfyExtension):
        async def on_load(self):
            answer_pages()
            answer_about_files()

        async def get_node_list(self):
            return NODES

    return LoraConductor()
