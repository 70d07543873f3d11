"""Live telemetry: guided steps as messages to the page."""

from __future__ import annotations

import sys
import time
from typing import Any

EVENT = "lora_conductor.guidance"
INTERVAL = 0.25  # seconds between messages


class StepEvents:
    """Sends guided steps of one run to the client whose prompt is running, a few a second at most."""

    def __init__(self) -> None:
        self._last = -INTERVAL

    def send(self, evaluation: dict[str, Any], steps: int) -> None:
        """Send one evaluation of `GuidedRun.report`, unless one was just sent. Without a server nothing happens."""
        now = time.monotonic()
        if now - self._last < INTERVAL:
            return
        # Only asked for, not imported: where ComfyUI runs as a server it is there, and importing it builds one.
        server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
        if server is not None and server.client_id is not None:
            self._last = now
            server.send_sync(EVENT, {"node": server.last_node_id, "steps": steps, **evaluation}, server.client_id)
