"""Finished routing maps for a page that was not connected when its run ended: it asks for them when it is back.

What a node of ComfyUI's own sampled is in no output of ours, so the server's history does not have it.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

ROUTE = "/lora_conductor/routing"
KEPT = 8  # runs

_finished: OrderedDict[tuple[str, str | None, str], Callable[[], dict[str, Any]]] = OrderedDict()


def keep(client: str, about: dict[str, Any], message: Callable[[], dict[str, Any]]) -> None:
    """Keep what there is to say of a finished run, in place of the same node's run before it.

    client: id of the page that queued it. about: with `workflow` and `node`. message: makes the whole map as one event,
    when somebody asks; it must not hold the run, which holds the model.
    """
    place = (client, about["workflow"], about["node"])
    _finished.pop(place, None)
    _finished[place] = message
    if len(_finished) > KEPT:
        _finished.popitem(last=False)


def missed_by(client: str | None) -> list[dict[str, Any]]:
    """The messages of the finished runs that this page queued, oldest first."""
    return [message() for (queued_by, *_), message in list(_finished.items()) if queued_by == client]


def offer_missed_maps() -> None:
    """Have ComfyUI's server hand them out: GET /lora_conductor/routing?client_id=...; nothing where no server is."""
    instance = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if instance is None:
        return
    from aiohttp import web

    @instance.routes.get(ROUTE)
    async def answer(request: Any) -> Any:
        return web.json_response(missed_by(request.query.get("client_id")))
