"""The page that queued the running prompt: whether it is there, and what events tell it to be about."""

from __future__ import annotations

import sys
from typing import Any

from comfy_execution.utils import get_executing_context

from .printable import printable


def page_of_prompt() -> tuple[Any, Any, str | None]:
    """The server, the socket of the page that queued the running prompt (None if it is not there), and its id.

    Without a server (core's samplers called from a script) all three are None.
    """
    # Only asked for, not imported: where ComfyUI runs as a server it is there, and importing it builds one.
    server: Any = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    client = getattr(server, "client_id", None)
    return server, server.sockets.get(client) if client else None, client


def send(server: Any, event: str, message: dict[str, Any], client: str | None) -> None:
    """Send an event to a page."""
    server.send_sync(event, printable(message, sys.maxsize), client)


def say_on_node(node: str, text: str) -> None:
    """Show a text on a node of the page that queued the running prompt, in core's own way; nothing without a page."""
    server, page, client = page_of_prompt()
    if page is not None and hasattr(server, "send_progress_text"):
        server.send_progress_text(printable(text, sys.maxsize), node, client)


def ids_of_prompt(server: Any) -> dict[str, str | None]:
    """Ids of the running prompt, and of the workflow it was made from: the page may show another one by now."""
    context = get_executing_context()
    prompt = context.prompt_id if context is not None else None
    for _, prompt_id, _, extra, *_ in list(server.prompt_queue.currently_running.values()):
        if prompt_id == prompt:
            found = extra  # of whatever the page sent along
            for part in ("extra_pnginfo", "workflow", "id"):
                found = found.get(part) if isinstance(found, dict) else None
            return {"prompt": prompt, "workflow": found if isinstance(found, str) else None}
    return {"prompt": prompt, "workflow": None}
