"""The counts as a page: ``docs/benchmarks/speed.md``."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from repo_paths import REPO

from .counting import RANK, Cost, Variants
from .models import SHAPES

PAGE = REPO / "docs" / "benchmarks" / "speed.md"
HEAD = f"""# What fusing costs

Made by `make bench-speed`. Counted, not timed: the same on every machine. Models have all the layers of real ones and
next to no width, in float32, two LoRAs of rank {RANK} on every layer of their transformer blocks, CFG 5 with both
prompts in one call. Everything that a user of the nodes gets is in: the map on the page, the record, the plan.
All policies that merge before sampling are weight patches, as `sum` is.

- *launches*: operations a device is asked for, a routed layer and model call, more than with the LoRAs merged by
  ComfyUI. Views are left out, and what the host computes by itself: map, record and plan from copies that have arrived.
- *moved*: what these read and write a step.
- *waits*: of the host for the device within a step's model calls.
- *reads*: copies to the host a step, between model calls, which nobody waits for: the map's.
"""


def write(models: Sequence[str] = tuple(SHAPES)) -> None:
    """Count all variants on models and write the page."""
    lines = [HEAD]
    for name in models:
        lines.append(f"\n## {name}\n")
        for line in _table(name):
            print(line, flush=True)
            lines.append(line)
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _table(name: str) -> Iterator[str]:
    import torch

    with tempfile.TemporaryDirectory() as folder:
        variants = Variants(SHAPES[name], torch.float32, Path(folder))
        yield f"{variants.layers} layers with two LoRAs.\n"
        yield "| | launches | moved, MB | waits | reads |\n|---|---|---|---|---|"
        for title, cost in costs(variants):
            yield f"| {title} | {cost.launches:.2f} | {cost.bytes / 1e6:.0f} | {cost.waits:g} | {cost.reads:g} |"


def costs(variants: Variants) -> Iterator[tuple[str, Cost]]:
    """Every policy that decides while the model runs, as users choose it; and what does not measure."""
    from lora_conductor.fusion.policies import StaticPolicy
    from lora_conductor.fusion.routing import NAMED, Refinement

    seen: list[Any] = []  # some policies have two names
    for name, policy in NAMED.items():
        if policy not in seen and (name == "sum" or not isinstance(policy, StaticPolicy)):
            yield name, variants.cost(policy)
            seen.append(policy)
    recommended = NAMED["recommended"]
    yield "recommended, frozen", variants.cost(recommended, Refinement(freeze_after=1))
    yield "recommended, replayed", variants.cost_of_replay(recommended)
