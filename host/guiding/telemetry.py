"""What a guided run tells while it runs: guided steps to the page that queued it, seconds and peaks of memory."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

import comfy.model_management
import psutil
import torch

from ..core.page import ids_of_prompt, page_of_prompt, send

EVENT = "lora_conductor.guidance"
INTERVAL = 0.25  # seconds between messages


class StepEvents:
    """Sends one run's guided evaluations, several in a message if need be; nothing while nobody is there.

    header: what `GuidedRun.report` says before the run. evaluations: its list of them, which grows.
    """

    def __init__(self, header: dict[str, Any], evaluations: Sequence[dict[str, Any]]) -> None:
        self._header = header
        self._evaluations = evaluations
        self._id = uuid.uuid4().hex[:12]
        self._sent = 0
        self._page: Any = None
        self._next = 0.0

    def tick(self) -> None:
        """Send what is new, unless something was just sent."""
        now = time.monotonic()
        if now < self._next:
            return
        server, page, client = page_of_prompt()
        if page is None:
            self._page = None
            return
        if page is not self._page:
            self._page, self._sent = page, 0  # a page that was reloaded is told everything again
        new = self._evaluations[self._sent :]
        if not new:
            return
        self._next = now + INTERVAL
        message = {
            "node": server.last_node_id,
            **ids_of_prompt(server),
            "run": self._id,
            "first": self._sent,
            "evaluations": list(new),
        }
        if self._sent == 0:
            message |= self._header
        self._sent = len(self._evaluations)
        send(server, EVENT, message, client)


MIB = 2**20


class Meter:
    """Clock and memory of one run, from its making to `stop`; corrections lie between `begin` and `end`.

    On CUDA memory is what torch has allocated, by its own peak counter, which is set back on the way. Elsewhere it is
    the resident set of the process, seen at each `look`: ask for one while a network's activations are alive.
    """

    def __init__(self) -> None:
        self._device = comfy.model_management.get_torch_device()
        self._cuda = self._device.type == "cuda"
        self._started = self._began = time.perf_counter()
        self._stopped: float | None = None
        self._guided = self._unguided = self._peak = 0
        self._reset()

    def begin(self) -> None:
        """A correction begins."""
        self._note_unguided()
        self._reset()
        self._began = time.perf_counter()

    def look(self) -> None:
        """Take note of the memory in use."""
        self._peak = max(self._peak, self._in_use(peak=True))

    def end(self) -> dict[str, float]:
        """The correction is over, its results read: its "seconds", and "memory_mb", the peak, weights included."""
        self.look()
        spent = {"seconds": round(time.perf_counter() - self._began, 4), "memory_mb": round(self._peak / MIB, 1)}
        self._guided = max(self._guided, self._peak)
        self._reset()
        return spent

    def stop(self) -> None:
        """The run is over."""
        if self._stopped is None:
            self._note_unguided()
            self._stopped = time.perf_counter()

    def run_seconds(self) -> float:
        """Seconds of the whole run, corrections included."""
        end = time.perf_counter() if self._stopped is None else self._stopped
        return round(end - self._started, 4)

    def memory(self) -> dict[str, Any]:
        """Peaks of the run in MiB: "guided" of its corrections, "unguided" of the rest, "over_unguided" the difference,
        0 at least; "measure" says of what."""
        return {
            "measure": "allocated on the device" if self._cuda else "resident set of the process",
            "guided_mb": round(self._guided / MIB, 1),
            "unguided_mb": round(self._unguided / MIB, 1),
            "over_unguided_mb": round(max(self._guided - self._unguided, 0) / MIB, 1),
        }

    def _note_unguided(self) -> None:
        self.look()
        # A process keeps much of what its first correction freed: from then on its size no longer tells of the rest.
        if self._cuda or not self._guided:
            self._unguided = max(self._unguided, self._peak)

    def _reset(self) -> None:
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(self._device)
        self._peak = self._in_use(peak=False)

    def _in_use(self, peak: bool) -> int:
        """Bytes in use; on CUDA, if asked, the most since the counter was set back."""
        if self._cuda:
            count = torch.cuda.max_memory_allocated if peak else torch.cuda.memory_allocated
            return count(self._device)
        return psutil.Process().memory_info().rss
