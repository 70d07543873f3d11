"""Finished routing maps for a page that was not connected when its run ended: they are sent when it is back.

What a node of ComfyUI's own sampled is in no output of ours, so the server's history does not have it. A socket may be
dead for minutes before the server knows, so what has arrived is not known either: every new connection of a page is
told its newest maps, and the page knows which it has. All of this runs in the server's thread.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

KEPT = 8  # maps
INTERVAL = 1.0  # seconds between looks at the connections
_Place = tuple[str, str | None, str]  # client id of a page, workflow, node
_finished: OrderedDict[_Place, tuple[Any, Callable[[], None]]] = OrderedDict()


def tell_when_back(server: Any, place: _Place, tell: Callable[[], None]) -> None:
    """Call `tell` in the server's thread whenever that page has a new connection.

    It takes the place of what the same node had to say before. It must not hold the run, which holds the model.
    """
    server.loop.call_soon_threadsafe(_keep, server, place, server.sockets.get(place[0]), tell)


def _keep(server: Any, place: _Place, socket: Any, tell: Callable[[], None]) -> None:
    if not _finished:
        server.loop.call_later(INTERVAL, _look, server)
    _finished.pop(place, None)
    _finished[place] = (socket, tell)
    if len(_finished) > KEPT:
        _finished.popitem(last=False)


def _look(server: Any) -> None:
    server.loop.call_later(INTERVAL, _look, server)
    for place, (known, tell) in _finished.items():
        socket = server.sockets.get(place[0])
        if socket is not None and socket is not known:
            _finished[place] = (socket, tell)
            tell()
