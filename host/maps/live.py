"""The routing map while it is being drawn: what was decided, as events to the page that queued the run.

An event goes out at most :data:`RATE` times a second, and only while that page is connected. Nobody waits for the
device: a step's numbers are copied to the host when the step is over, and read once they have arrived.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from ...fusion.policies import title
from ...fusion.records import CallDecisions, RoutingRecord
from ..core import ids_of_prompt, page_of_prompt, send
from .codes import encode
from .columns import Columns
from .missed import tell_when_back

EVENT = "lora_conductor.routing"
RATE = 4.0  # events a second


class Watched(Protocol):
    """A run, as far as its map asks: what it decided so far, and at which of how many steps it is."""

    @property
    def calls(self) -> Sequence[CallDecisions]: ...

    @property
    def step(self) -> int: ...

    @property
    def steps(self) -> int: ...


@dataclass(eq=False)
class LiveMap:
    """Tells the page about one run.

    Attributes:
        run: the run.
        node: execution id of the node that shows the map ("1:2:3" inside subgraphs).
        header: policy and LoRAs, as in the routing record.
    """

    run: Watched
    node: str
    header: dict[str, Any]
    _id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    _columns: Columns = field(default_factory=Columns)
    _fetched: int = 0
    _sent: dict[str, int] = field(default_factory=lambda: {"layers": 0, "steps": 0})
    _page: Any = None
    _next: float = 0.0

    def watching(self, callback: Callable[..., Any] | None) -> Callable[..., Any]:
        """The sampler's callback, with a look at the clock after it."""

        def watch(*args: Any) -> Any:
            result = callback(*args) if callback is not None else None
            self._tick()
            return result

        return watch

    def _tick(self) -> None:
        now = time.perf_counter()
        if now < self._next:
            return
        self._next = now + 1 / RATE
        if not self._connected():
            return
        done = [call for call in self.run.calls[self._fetched :] if call.step < self.run.step]
        self._fetched += len(done)
        self._columns.fetch(done)
        self._send(self._columns.layers, self._columns.take_arrived(self._sent["steps"]), finished=False)

    def finish(self, record: RoutingRecord) -> None:
        """The run is over: send what the page has not seen yet, from the record itself; all of it if it comes back."""
        server, _, client = page_of_prompt()
        if not record.layers or client is None:
            return
        if self._connected():
            self._send(record.layers, _columns_of(record), finished=True)
        about = self._about(server)
        tell = partial(_tell_all, server, client, about, self.header, record)
        tell_when_back(server, (client, about["workflow"], self.node), tell)

    def _connected(self) -> bool:
        """Whether anybody is there; a page that was reloaded is told everything again."""
        _, page, _ = page_of_prompt()
        if page is not None and page is not self._page:
            self._sent = {"layers": 0, "steps": 0}
        self._page = page
        return page is not None

    def _send(self, layers: tuple[str, ...] | list[str], columns: dict[int, Tensor], *, finished: bool) -> None:
        server, _, client = page_of_prompt()
        new = {step: values for step, values in columns.items() if step >= self._sent["steps"]}
        if not (new or finished):
            return
        first = self._sent["layers"]
        message = _message(self._about(server), self.header, first, layers, new) | {"finished": finished}
        self._sent = {"layers": len(layers), "steps": max(new, default=self._sent["steps"] - 1) + 1}
        send(server, EVENT, message, client)

    def _about(self, server: Any) -> dict[str, Any]:
        return {"node": self.node, **ids_of_prompt(server), "run": self._id, "steps": self.run.steps}


def _message(
    about: dict[str, Any],
    header: dict[str, Any],
    first: int,
    layers: tuple[str, ...] | list[str],
    columns: dict[int, Tensor],
) -> dict[str, Any]:
    """What an event says: the layers from the ``first`` on, and columns of all of them."""
    message = {**about, "first_layer": first, "layers": list(layers[first:]), "columns": _encoded(columns)}
    if first == 0:
        message["policy"] = title(header["policy"])
        message["loras"] = [{key: lora[key] for key in ("name", "role")} for lora in header["loras"]]
    return message


def _tell_all(server: Any, client: str, about: dict[str, Any], header: dict[str, Any], record: RoutingRecord) -> None:
    message = _message(about, header, 0, record.layers, _columns_of(record))
    send(server, EVENT, message | {"finished": True}, client)


def _columns_of(record: RoutingRecord) -> dict[int, Tensor]:
    return dict(enumerate(torch.cat([record.weights, record.scores]).permute(2, 0, 1)))


def _encoded(columns: dict[int, Tensor]) -> dict[str, str]:
    """Each column as text; all of them in one go."""
    if not columns:
        return {}
    text = encode(torch.cat(list(columns.values()), 1))
    length = len(text) // len(columns)
    return {str(step): text[i * length : (i + 1) * length] for i, step in enumerate(columns)}
