"""What runs have told pages, kept: a page that was not listening asks for it, and is told again.

A page that is reloaded has its connection long before it listens, and a dead connection looks alive for minutes, so
the server cannot know what has arrived. What a node of ComfyUI's own sampled is in no output of ours, so its history
does not have it either.
"""

from __future__ import annotations

import sys
import threading
import uuid
from collections import OrderedDict
from typing import Any

from .page import ids_of_prompt, page_of_prompt, send

KEPT = 16  # stories
ROUTE = "/lora_conductor/tell_again"
_Place = tuple[str, str, str | None, str]  # event, client id of a page, workflow, node
_told: OrderedDict[_Place, tuple[Any, dict[str, Any]]] = OrderedDict()
_telling = threading.Lock()  # runs tell in the thread of execution, pages ask in the server's


class Story:
    """What one run tells the page that queued it about one node, message by message.

    event: its name for the page. node: execution id of the node that shows it; the one that executes, if none is given.
    Nobody is told where there is no page.
    """

    def __init__(self, event: str, node: str | None = None) -> None:
        self._server, _, self._client = page_of_prompt()
        self.is_for_somebody = self._client is not None
        self._event = event
        self._about: dict[str, Any] = {"node": node, "run": uuid.uuid4().hex[:12]}
        if self.is_for_somebody:
            self._about |= {"node": node or self._server.last_node_id, **ids_of_prompt(self._server)}

    @property
    def is_heard(self) -> bool:
        """Whether that page is connected just now."""
        return self.is_for_somebody and self._server.sockets.get(self._client) is not None

    def tell(self, message: dict[str, Any]) -> None:
        """Send what is new. Lists and dictionaries go on from those of the messages before."""
        if not self.is_for_somebody:
            return
        message = {**self._about, **message}
        place = (self._event, str(self._client), self._about["workflow"], self._about["node"])
        with _telling:
            _, before = _told.pop(place, (None, {}))
            same_run = before.get("run") == message["run"]
            _told[place] = self._server, _together(before, message) if same_run else message
            while len(_told) > KEPT:
                _told.popitem(last=False)
            send(self._server, self._event, message, self._client)


def _together(before: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """One message that says what both say, to somebody who has heard neither."""
    both = {**new, **before}
    for key in before.keys() & new.keys():
        if isinstance(new[key], bool):
            both[key] = before[key] or new[key]
        elif isinstance(new[key], list):
            both[key] = before[key] + new[key]
        elif isinstance(new[key], dict):
            both[key] = {**before[key], **new[key]}
    return both


def tell_again(client: str) -> None:
    """Send a page the newest story of each of its nodes, whole."""
    with _telling:
        for (event, whose, *_), (server, message) in _told.items():
            if whose == client:
                send(server, event, message, client)


def routes_and_web() -> tuple[Any, Any] | None:
    """The server's routes, and the module its answers are made with; None where core's nodes run in a script."""
    module: Any = sys.modules.get("server")
    server = getattr(getattr(module, "PromptServer", None), "instance", None)
    return None if server is None else (server.routes, module.web)


def answer_pages() -> None:
    """Have the server answer pages that ask: a POST with their ``client`` id. What comes back are events alone."""
    found = routes_and_web()
    if found is None:
        return
    routes, web = found

    @routes.post(ROUTE)
    async def answer(request: Any) -> Any:
        tell_again(request.query.get("client", ""))
        return web.Response(status=204)
