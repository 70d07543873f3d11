"""The results of a model's last runs, and which of them made a latent."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...fusion.records import Plan, RoutingRecord
from ..core import Place, executing

KEPT_RUNS = 64
KEPT_PLANS = 8  # they are much larger than records


@dataclass(frozen=True)
class KeptRun:
    """What is left of a run.

    Attributes:
        samples: the latent it made, ``[batch, numbers]`` on the CPU.
        record: what it decided, in means.
        plan: what it decided, in full; None once newer runs took its place.
        place: the execution of a node in which it ran; None outside of a workflow.
    """

    samples: Tensor
    record: RoutingRecord
    plan: Plan | None
    place: Place | None


class KeptRuns:
    """The last runs, newest first."""

    def __init__(self) -> None:
        self._runs: deque[KeptRun] = deque(maxlen=KEPT_RUNS)

    def add(self, samples: Any, record: RoutingRecord, plan: Plan) -> None:
        """Keep what a run made, as the node that executes now will hand it on."""
        self._runs.appendleft(KeptRun(flat(samples).clone(), record, plan, executing()))
        if len(self._runs) > KEPT_PLANS:
            self._runs[KEPT_PLANS] = replace(self._runs[KEPT_PLANS], plan=None)

    def made(self, samples: Any) -> KeptRun | None:
        """The run that made these samples, known by their values: whatever the dtype they were stored in."""
        given = flat(samples)
        return next((run for run in self._runs if _same(run.samples, given)), None)

    def in_nodes(self, nodes: Sequence[str], item: int | None = None) -> KeptRun | None:
        """The newest run of the first of these nodes that ran the model, for that item of its list."""
        for node in nodes:
            runs = [run for run in self._runs if run.place is not None and run.place.node == node]
            if runs:
                return next((run for run in runs if run.place is not None and run.place.item == item), runs[0])
        return None


def flat(samples: Any) -> Tensor:
    """A latent, nested ones included, as ``[batch, numbers]`` on the CPU: as core packs them for its samplers."""
    parts = samples.unbind() if getattr(samples, "is_nested", False) else [samples]
    return torch.cat([part.detach().cpu().reshape(part.shape[0], -1) for part in parts], dim=1)


def _same(made: Tensor, given: Tensor) -> bool:
    if made.shape != given.shape:
        return False
    # As core casts it to the dtype in which nodes hand latents on; NaN is NaN.
    return torch.equal(made.to(given.dtype).nan_to_num(nan=1e30), given.nan_to_num(nan=1e30))
