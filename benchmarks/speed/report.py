"""The counts as a page: ``docs/benchmarks/speed.md``."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from repo_paths import REPO

from . import compiling, loading, memory
from .bookkeeping import LAYERS, STEPS, bookkeeping
from .counting import RANK, Cost, Variants
from .models import SHAPES

PAGE = REPO / "docs" / "benchmarks" / "speed.md"
HEAD = f"""# What fusing costs

Made by `make bench-speed`. All but seconds is counted, not timed: the same on every machine.

Launches are those of models with all the layers of real ones and next to no width, in float32 where nothing else is
said, two LoRAs of rank {RANK} on every layer of their transformer blocks, CFG 5 with both prompts in one call.
Everything that a user of the nodes gets is in: the map on the page, the record, the plan. All policies that merge
before sampling are weight patches, as `sum` is; so is a frozen run at CFG 1. What was tried and did not help:
[lab-notes.md](lab-notes.md). In half precision what is measured is widened first.

- *launches*: operations a device is asked for, a routed layer and model call, more than with the LoRAs merged by
  ComfyUI. Views are left out, and what the host computes by itself: map, record and plan from copies that have arrived.
- *moved*: what these read and write a step.
- *waits*: of the host for the device within a step's model calls.
- *reads*: copies to the host a step, between model calls, which nobody waits for: the map's.
"""
HALVED = ("recommended", "kl_soft", "paper")  # also counted where features have to be widened to be measured


def write(models: Sequence[str] = tuple(SHAPES)) -> None:
    """Count all variants on models and write the page."""
    lines = [HEAD]
    for name in models:
        lines.append(f"\n## {name}\n")
        for line in _table(name):
            print(line, flush=True)
            lines.append(line)
    for title, rows in _more():
        lines.append(f"\n## {title}\n")
        for line in rows:
            print(line, flush=True)
            lines.append(line)
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _more() -> Iterator[tuple[str, Iterable[str]]]:
    """Sections about other things than launches."""
    yield "Memory", memory.table()
    its = bookkeeping()
    parts = ", ".join(f"{name} {1000 * seconds:.0f}" for name, seconds in vars(its).items())
    told = f"Of a run of {LAYERS} layers and {STEPS} steps, as SDXL has them, in milliseconds of the host: {parts}."
    yield "Map, record and plan", [told]
    yield "Loading", loading.table()
    yield "torch.compile", compiling.table()


def _table(name: str) -> Iterator[str]:
    import torch

    from lora_conductor.fusion.routing import NAMED

    with tempfile.TemporaryDirectory() as folder:
        variants = Variants(SHAPES[name], torch.float32, Path(folder))
        yield f"{variants.layers} layers with two LoRAs.\n"
        yield "| | launches | moved, MB | waits | reads |\n|---|---|---|---|---|"
        for title, cost in costs(variants):
            yield _row(title, cost)
        halved = Variants(SHAPES[name], torch.bfloat16, Path(folder))
        for title in HALVED:
            yield _row(f"{title}, bfloat16", halved.cost(NAMED[title]))


def _row(title: str, cost: Cost) -> str:
    return f"| {title} | {cost.launches:.2f} | {cost.bytes / 1e6:.0f} | {cost.waits:g} | {cost.reads:g} |"


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
