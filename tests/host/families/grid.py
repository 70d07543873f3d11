"""The grid of equalities: family x adapter x dtype, ours against ComfyUI's own merge, one step of sampling each.

In a cell the subject LoRA is of the cell's kind, on every linear and convolution layer and in a dialect of whole
weights; the style LoRA is a plain one in another dialect, with slices of fused weights where there are any.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_conductor.host.loras import LoraPatches, Target

from .. import tiny
from ..adapter_files import ROWS
from .bench import ADAPTERS, Bench, Tamper
from .catalogue import FAMILIES

# Other kinds than these depend on the weight, and the host merges reordered rows before they see it: orders differ.
ADDED = {kind for kind, row in ROWS.items() if row.additive}
# On some versions of torch the host leaves LoKr with a Tucker core out, with a line in its log: nothing to compare.
OTHER_ADAPTERS = [kind for kind in ROWS if kind not in (*ADAPTERS, "lokr_tucker")]
THOROUGH = ["SD15", "SDXL", "Flux", "ZImage", "WAN21_T2V"]
EXACT = 1e-5  # of the output's range, in float32
LOW_PRECISION = 1.3  # of the error of the host's own merge
MOVED = 1e-3  # of the range: less, and a cell shows nothing


@dataclass(frozen=True)
class Cell:
    """What was measured.

    Attributes:
        error: float32: the worst of two LoRAs against two loaders and one LoRA against one loader, of the output's
            range. Low precision: RMS error against float32 over that of the host's merge.
        moved: how far the LoRAs move the output, of its range.
        routed, merged: entries of both files that are fused at run time, and that the host merges.
        lost: keys of both files that are in neither.
    """

    family: str
    kind: str
    dtype: torch.dtype
    error: float
    moved: float
    routed: int
    merged: int
    lost: int

    @property
    def passed(self) -> bool:
        allowed = EXACT if self.dtype == torch.float32 else LOW_PRECISION
        return self.error <= allowed and self.moved > MOVED and self.routed > 0 and self.lost == 0


def measure(bench: Bench, kind: str, dtype: torch.dtype = torch.float32, tamper: Tamper | None = None) -> Cell | None:
    """Measure a cell; None where the family has no layer for such adapters."""
    low = dtype != torch.float32
    size = 0.1 if low else 0.5
    subject = bench.file(kind, "whole", size=size)
    style = bench.file("lora", "reordered" if kind in ADDED else "sliced", seed=2, size=size)
    if subject is None or style is None:
        return None
    model, pair = bench.model(dtype), {"subject": subject, "style": style}
    turns = 3 if low else 1  # rounding is a matter of chance, which a few hundred numbers do not level out
    ours, patches = bench.ours(model, pair, tamper=tamper, turns=turns)
    core = bench.core(model, pair, turns)
    if low:
        truth = bench.core(bench.model(torch.float32, dtype), pair, turns)
        error = _rms(ours - truth) / _rms(core - truth)
    else:
        alone = {"subject": subject}
        error = tiny.relative(bench.ours(model, alone)[0], bench.core(model, alone))
        error = max(error, tiny.relative(ours, core))
    return Cell(
        bench.family.model,
        kind,
        dtype,
        error,
        tiny.relative(bench.base(dtype, turns), core),
        sum(len(p.routed) for p in patches),
        sum(len(p.merged) for p in patches),
        sum(len(set(p.file.tensors) - p.applied) for p in patches),
    )


def measure_row(name: str, folder: Path, tamper: Tamper | None = None) -> list[Cell]:
    """All cells of a family: the kinds of adapter, plain LoRA in bfloat16; for some families every kind there is."""
    bench = Bench(FAMILIES[name], folder)
    kinds = [*ADAPTERS, *(OTHER_ADAPTERS if name in THOROUGH else [])]
    cells = [measure(bench, kind, tamper=tamper) for kind in kinds]
    cells.append(measure(bench, "lora", torch.bfloat16, tamper))
    return [cell for cell in cells if cell is not None]


def zero_is_none(bench: Bench) -> bool:
    """Whether LoRAs of strength 0 leave the output as it is, bit for bit."""
    pair = {"subject": bench.file("lora", "whole"), "style": bench.file("lora", "reordered", seed=2)}
    files = {role: path for role, path in pair.items() if path is not None}
    return torch.equal(bench.ours(bench.model(), files, scale=0.0)[0], bench.base(torch.float32))


def _rms(difference: Tensor) -> float:
    return float(difference.double().square().mean().sqrt())


def louder(patches: LoraPatches, bench: Bench) -> None:
    """One layer's delta is a hundredth too large."""
    target = _victim(patches, bench)
    delta: Any = patches.routed[target]
    patches.routed[target] = replace(delta, scale=delta.scale * 1.01)


def dropped(patches: LoraPatches, bench: Bench) -> None:
    """One slice of a fused weight, or one layer where none is fused, is left out."""
    del patches.routed[_victim(patches, bench)]


BREAKS: dict[str, Callable[[LoraPatches, Bench], None]] = {"louder": louder, "dropped": dropped}


def _victim(patches: LoraPatches, bench: Bench) -> Target:
    targets = [target for target in patches.routed if target.key not in bench.idle]
    sliced = [target for target in targets if target.offset is not None] or targets
    return sliced[len(sliced) // 2]
