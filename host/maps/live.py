"""The routing map while it is being drawn: what was decided, as events to the page that queued the run.

An event goes out at most :data:`RATE` times a second, and only while that page is connected. Nobody waits for the
device: a step's numbers are copied to the host when the step is over, and read once they have arrived.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ...fusion.policies import title
from ...fusion.records import CallDecisions, Effects, RoutingRecord
from ..core import Story
from .codes import encode
from .columns import Columns

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
    """Tells the page about one run; made when the run begins, in the thread of execution.

    Attributes:
        run: the run.
        node: execution id of the node that shows the map ("1:2:3" inside subgraphs).
        header: policy and LoRAs, as in the routing record.
        effects: what the LoRAs do in the layers before they are weighted.
    """

    run: Watched
    node: str
    header: dict[str, Any]
    effects: Effects = field(default_factory=Effects)
    _columns: Columns = field(default_factory=Columns)
    _fetched: int = 0
    _layers: int = 0  # that were told
    _steps: int = 0
    _next: float = 0.0

    def __post_init__(self) -> None:
        self._story = Story(EVENT, self.node)

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
        if self._story.is_heard:
            self._look()

    def _look(self) -> None:
        """Tell what has been decided and has arrived."""
        done = [call for call in self.run.calls[self._fetched :] if call.step < self.run.step]
        self._fetched += len(done)
        self._columns.fetch(done)
        if columns := self._columns.take_arrived(self._steps):
            self._tell(self._columns.layers, columns)

    def finish(self, record: RoutingRecord, nothing: str) -> None:
        """The run is over: tell what was not told yet, from the record itself.

        nothing: why nothing was routed, if nothing was.
        """
        if not self._story.is_for_somebody:
            return
        if record.layers:
            self._tell(record.layers, _columns_of(record, self._steps), finished=True)
        else:
            self._tell((), {}, finished=True, nothing=nothing)

    def stop(self) -> None:
        """The run ended before its time, by the stop button or an error; nothing more is asked of the device."""
        self._tell(self._columns.layers, self._columns.take_arrived(self._steps), stopped=True)

    def _tell(self, layers: Sequence[str], columns: dict[int, Tensor], **more: Any) -> None:
        new = list(layers[self._layers :])
        loudness = [round(each, 3) for each in self.effects.of(new).tolist()]
        message = {"steps": self.run.steps, "first_layer": self._layers, "layers": new, "loudness": loudness}
        if self._layers == 0:
            message |= {**_header(self.header), "measured": self.effects.measured}
        self._layers, self._steps = len(layers), max(columns, default=self._steps - 1) + 1
        self._story.tell({**message, "columns": _encoded(columns), "finished": False, **more})


def nothing_routed(node: str, why: str, header: dict[str, Any] | None) -> None:
    """Tell the page that a run which begins now routes nothing: what the node shows is not of this run.

    why: "merged", "no_loras" ..., see `host/fusing/unrouted.py`. header: policy and LoRAs, where there are any.
    """
    known = {} if header is None else _header(header)
    told = {"steps": 0, "first_layer": 0, "layers": [], "columns": {}, "finished": True, "nothing": why}
    Story(EVENT, node).tell({**known, **told})


def _header(header: dict[str, Any]) -> dict[str, Any]:
    loras = [{key: lora[key] for key in ("name", "role")} for lora in header["loras"]]
    return {"policy": title(header["policy"]), "loras": loras}


def _columns_of(record: RoutingRecord, first: int) -> dict[int, Tensor]:
    columns = torch.cat([record.weights, record.scores]).permute(2, 0, 1)
    return {step: column for step, column in enumerate(columns) if step >= first}


def _encoded(columns: dict[int, Tensor]) -> dict[str, str]:
    """Each column as text; all of them in one go."""
    if not columns:
        return {}
    text = encode(torch.cat(list(columns.values()), 1))
    length = len(text) // len(columns)
    return {str(step): text[i * length : (i + 1) * length] for i, step in enumerate(columns)}
