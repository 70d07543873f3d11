"""The counts as a page: ``docs/benchmarks/speed.md``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from repo_paths import REPO

from . import compiling, loading, memory, scaling, timing, trace
from .bookkeeping import LAYERS, STEPS, bookkeeping
from .counting import RANK, Cost, Variants
from .models import SHAPES

PAGE = REPO / "docs" / "benchmarks" / "speed.md"
HEAD = f"""# What fusing costs

Made by `make bench-speed`, or section by section: `ARGS="--section FLUX --section Time"`. All but seconds and ratios of
time is counted, not timed: the same on every machine.

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
LARGEST = {"SDXL": ("recommended", "sum", "paper", "kl_soft", "k_lora")}  # counting all would take most of an hour
HALVED = ("recommended", "kl_soft", "paper")  # also counted where features have to be widened to be measured


def sections(rounds: int, steps: int) -> dict[str, Callable[[], Iterable[str]]]:
    """What the page is made of, in order, by heading. rounds, steps: of what is timed."""
    tables: dict[str, Callable[[], Iterable[str]]] = {name: partial(_table, name) for name in SHAPES}
    return tables | {
        "One layer, before and now": trace.table,
        "Scaling": scaling.table,
        "Time": partial(timing.table, timing.SETTINGS, rounds, steps),
        "Memory": memory.table,
        "Map, record and plan": _bookkeeping,
        "Loading": loading.table,
        "torch.compile": compiling.table,
    }


def write(makers: Mapping[str, Callable[[], Iterable[str]]], chosen: Collection[str], page: Path = PAGE) -> None:
    """Make the chosen sections and write the page, which keeps what it says elsewhere."""
    before = _sections(page.read_text(encoding="utf-8")) if page.is_file() else {}
    lines = [HEAD]
    for title, make in makers.items():
        if title in chosen or title in before:
            lines.append(f"\n## {title}\n")
            for line in make() if title in chosen else before[title]:
                if title in chosen:
                    print(line, flush=True)
                lines.append(line)
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _sections(page: str) -> dict[str, list[str]]:
    """A page's lines by heading."""
    found = (part.partition("\n") for part in page.split("\n## ")[1:])
    return {title: body.strip("\n").splitlines() for title, _, body in found}


def _bookkeeping() -> Iterator[str]:
    its = bookkeeping()
    parts = ", ".join(f"{name} {1000 * seconds:.0f}" for name, seconds in vars(its).items())
    yield f"Of a run of {LAYERS} layers and {STEPS} steps, as SDXL has them, in milliseconds of the host: {parts}."


def _table(name: str) -> Iterator[str]:
    import torch

    from lora_conductor.fusion.routing import NAMED

    with tempfile.TemporaryDirectory() as folder:
        variants = Variants(SHAPES[name], torch.float32, Path(folder))
        yield f"{variants.layers} layers with two LoRAs.\n"
        yield "| | launches | moved, MB | waits | reads |\n|---|---|---|---|---|"
        for title, cost in costs(variants, LARGEST.get(name)):
            yield _row(title, cost)
        if name in LARGEST:
            return
        halved = Variants(SHAPES[name], torch.bfloat16, Path(folder))
        for title in HALVED:
            yield _row(f"{title}, bfloat16", halved.cost(NAMED[title]))


def _row(title: str, cost: Cost) -> str:
    return f"| {title} | {cost.launches:.2f} | {cost.bytes / 1e6:.0f} | {cost.waits:g} | {cost.reads:g} |"


def costs(variants: Variants, only: Collection[str] | None = None) -> Iterator[tuple[str, Cost]]:
    """Every policy that decides while the model runs, as users choose it, or some; and what does not measure."""
    from lora_conductor.fusion.policies import StaticPolicy
    from lora_conductor.fusion.routing import NAMED, Refinement

    seen: list[Any] = []  # some policies have two names
    for name, policy in NAMED.items():
        if only is not None and name not in only:
            continue
        if policy not in seen and (name == "sum" or not isinstance(policy, StaticPolicy)):
            yield name, variants.cost(policy)
            seen.append(policy)
    recommended = NAMED["recommended"]
    yield "recommended, frozen", variants.cost(recommended, Refinement(freeze_after=1))
    yield "recommended, replayed", variants.cost_of_replay(recommended)
