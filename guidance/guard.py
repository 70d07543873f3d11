"""The held-out guard: guidance that pleases its own encoders only has to stop."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class HeldOutGuard:
    """Watches one sample's similarity by an encoder that does not guide.

    Guidance that raises what it sees while another encoder's opinion falls is painting for the encoder, not for the
    eye. patience: how many falls in a row end guidance for the rest of the run.
    """

    patience: int = 2
    last: float = math.nan
    falls: int = 0

    @property
    def stopped(self) -> bool:
        """Whether guidance is to stop."""
        return self.falls >= self.patience

    def watch(self, similarity: float) -> None:
        """Take the held-out similarity at a guided step. Values that are not numbers are ignored."""
        if self.stopped or math.isnan(similarity):
            return
        self.falls = self.falls + 1 if similarity < self.last else 0
        self.last = similarity
