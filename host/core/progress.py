"""Progress of long work that is not sampling, on the running node; the stop button ends it."""

from __future__ import annotations

import comfy.model_management
import comfy.utils


class Progress:
    """Core's progress bar of the running node, which core empties with the next one.

    total: how many steps there are.
    """

    def __init__(self, total: int) -> None:
        self._bar = comfy.utils.ProgressBar(total)

    def step(self) -> None:
        """One step is done. Raises core's interrupt if the user has pressed stop."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._bar.update(1)
