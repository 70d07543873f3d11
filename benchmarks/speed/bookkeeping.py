"""What is kept of a run: how long map, record and plan take the host, for a model as large as SDXL."""

from __future__ import annotations

import time
from dataclasses import dataclass

LAYERS, STEPS = 720, 30


@dataclass(frozen=True)
class Bookkeeping:
    """Processor seconds of a whole run."""

    map: float
    record: float
    plan: float

    @property
    def total(self) -> float:
        return self.map + self.record + self.plan


def bookkeeping(layers: int = LAYERS, steps: int = STEPS) -> Bookkeeping:
    """Of a run with two prompts in one call a step, which the page is told of after each."""
    import torch

    from lora_conductor.fusion.layers import Batch
    from lora_conductor.fusion.records import Block, CallDecisions, in_order, plan_of, read_back, record_of
    from lora_conductor.host.maps.columns import Columns
    from lora_conductor.host.maps.live import _encoded

    batch, header = Batch(("negative.0", "positive.0")), {"policy": {}, "loras": (), "refinement": {}}
    names, rows = [f"diffusion_model.layer.{i}" for i in range(layers)], tuple(range(layers))
    values = torch.rand(steps, 5, layers, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    sigmas = tuple(float(step) for step in range(steps, -1, -1))

    def stamped() -> float:
        return time.process_time()

    columns, calls, started = Columns(), [], stamped()
    for step in range(steps):
        calls.append(CallDecisions.of(step, batch, (0, 0), names, Block(rows, tuple(range(5)), values[step])))
        columns.fetch(calls[-1:])
        _encoded(columns.take_arrived(step))
    drawn = stamped()
    here = in_order(read_back(calls))
    record_of(here, sigmas, header)
    recorded = stamped()
    plan_of(here, sigmas, header, None)
    return Bookkeeping(drawn - started, recorded - drawn, stamped() - recorded)
