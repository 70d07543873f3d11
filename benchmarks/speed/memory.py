"""Memory that fusing takes beyond LoRAs merged by ComfyUI: the factors beside the model, and the peak of a step.

Counted by PyTorch's own allocator, event by event: the same in every run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..full_size import sample, sd15_unet
from .timing import RANK, variants


@dataclass(frozen=True)
class Memory:
    """In bytes.

    Attributes:
        factors: that core loads beside the model, as it counts them.
        peak: the most that lay at once in tensors made while sampling.
    """

    factors: int
    peak: int


def peak_of(function: Callable[[], Any]) -> int:
    """The most bytes that a call had allocated at once on the CPU, beyond what was there before."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        function()
    held = most = 0
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.device_type() == DeviceType.CPU:
            held += event.nbytes()
            most = max(most, held)
    return most


def measured(model: Any, run: Callable[[Any], Any]) -> Memory:
    """Of a run with a model, the second one: the first loads and patches it."""
    run(model)
    beside = (patcher.model_size() for patcher in model.get_additional_models())
    return Memory(sum(beside), peak_of(lambda: run(model)))


def table(size: int = 256) -> Iterator[str]:
    """As a page shows it, of a full-size SD1.5 UNet."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        models = variants(sd15_unet(torch.float32), Path(folder))
        merged = measured(models.pop("merged (core)"), lambda model: sample(model, 1, size))
        yield (
            f"A full-size SD1.5 UNet, {size} px, float32, two LoRAs of rank {RANK}. Merged by ComfyUI, a step holds "
            f"{merged.peak / 1e6:.0f} MB at most in what it computes.\n"
        )
        yield "| | factors, MB | more at the peak, MB |\n|---|---|---|"
        for name, model in models.items():
            if "frozen" not in name:
                its = measured(model, lambda model: sample(model, 1, size))
                yield f"| {name} | {its.factors / 1e6:.1f} | {(its.peak - merged.peak) / 1e6:.1f} |"
