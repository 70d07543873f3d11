"""Live telemetry: guided steps as messages to the page that queued the run."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from .page import ids_of_prompt, page_of_prompt

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
        server.send_sync(EVENT, message, client)
