"""What metric guidance costs in the small world: time, CPU time and memory."""

from __future__ import annotations

import ctypes
import re
import statistics
import time
from pathlib import Path
from typing import Any

from ..methods.guidance import PlanMaker, guided
from ..world.small_world import SmallWorld
from ..world.splits import STYLES, TEST


def costs(
    small: SmallWorld, make_model: Any, plans: dict[str, PlanMaker], rounds: int
) -> dict[str, tuple[float, float, float]]:
    """Of sampling one picture: medians over rounds of time and of CPU time / unguided in the round, and MB of peak
    memory more.

    In turn, round after round, so that a noisy machine disturbs all methods alike; CPU time it disturbs less. Memory in
    a round of its own: giving back what is free makes the next run slower.
    """
    pair = TEST[0], STYLES[0]
    base = make_model(small.model, small.lora("subject", pair[0]), small.lora("style", pair[1]))
    models = {name: guided(base, plan(*pair), []) for name, plan in plans.items()}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for round_ in range(rounds + 1):
        for name, model in models.items():
            start = time.perf_counter(), time.process_time()
            small.sample(model, *pair, [round_])
            if round_:  # the first round warms up
                seconds[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    peaks: dict[str, float] = {}
    for name, model in models.items():
        reset_peak()
        small.sample(model, *pair, [0])
        peaks[name] = peak()

    def ratio(name: str, clock: int) -> float:
        return statistics.median(a[clock] / b[clock] for a, b in zip(seconds[name], seconds["none"], strict=True))

    return {name: (ratio(name, 0), ratio(name, 1), peaks[name] - peaks["none"]) for name in models}


def reset_peak() -> None:
    """Forget this process's peak of resident memory (Linux), after giving back what is free."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak() -> float:
    """Peak resident memory since, MB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024
