"""The grid of equalities: family x adapter x dtype, ours against ComfyUI's own merge, one step of sampling each.

In a cell the subject LoRA is of the cell's kind, on every linear and convolution layer, in the first dialect the host
maps to whole weights; the style LoRA is a plain one in the last, with slices of fused weights where there are any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import comfy.lora
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from lora_conductor.fusion.policies import Sum
from lora_conductor.host.fusion_patch import add_loras, set_policy
from lora_conductor.host.lora_files import LoraPatches, Target, model_patches, read_lora

from . import tiny
from .adapter_files import KINDS, TUCKER_KINDS, Maker, make_file
from .families import FAMILIES, Family, build, sample

ADAPTERS = ["lora", "tucker", "loha", "lokr", "glora", "oft", "boft", "dora_out_lora", "diff"]
OTHER_ADAPTERS = [kind for kind in (*KINDS, *TUCKER_KINDS) if kind not in ADAPTERS]
IN_TURN = "all in turn"
THOROUGH = ["SD15", "SDXL", "Flux", "ZImage", "WAN21_T2V"]
EXACT = 1e-5  # of the output's range, in float32
LOW_PRECISION = 1.3  # of the error of the host's own merge
MOVED = 1e-3  # of the range: less, and a cell shows nothing
STRENGTHS = {"subject": 0.8, "style": -0.6}

Tamper = Callable[[LoraPatches, "Bench"], None]


@dataclass(frozen=True)
class Cell:
    """What was measured. Errors are relative to the output's range in float32, to the host's error in low precision.

    Attributes:
        error: the worst of two LoRAs against two loaders and one LoRA against one loader.
        moved: how far the LoRAs move the output, of its range.
        zero: strengths of 0 change nothing.
        routed, merged: entries of both files that are fused at run time, and that the host merges.
        lost: keys of both files that are in neither.
    """

    family: str
    kind: str
    dtype: torch.dtype
    error: float
    moved: float
    zero: bool
    routed: int
    merged: int
    lost: int

    @property
    def passed(self) -> bool:
        allowed = EXACT if self.dtype == torch.float32 else LOW_PRECISION
        return self.error <= allowed and self.moved > MOVED and self.zero and self.routed > 0 and self.lost == 0


class Bench:
    """One family's models, and what the cells of a row share."""

    def __init__(self, family: Family, folder: Path) -> None:
        self.family, self.folder = family, folder
        self._bases: dict[torch.dtype, Tensor] = {}
        self._models: dict[tuple[torch.dtype, torch.dtype | None], ModelPatcher] = {}
        self._files = 0

    def model(self, dtype: torch.dtype = torch.float32, rounded_to: torch.dtype | None = None) -> ModelPatcher:
        if (dtype, rounded_to) not in self._models:
            self._models[dtype, rounded_to] = build(self.family, dtype, rounded_to)
        return self._models[dtype, rounded_to]

    def base(self, dtype: torch.dtype) -> Tensor:
        """The output without LoRAs."""
        if dtype not in self._bases:
            self._bases[dtype] = self.sample(self.model(dtype))
        return self._bases[dtype]

    def sample(self, model: ModelPatcher) -> Tensor:
        return sample(self.family, model)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all linear and convolution layers, by weight key."""
        return tiny.layer_shapes(self.model())

    @cached_property
    def idle(self) -> list[str]:
        """Layers that one step does not call."""
        called: set[str] = set()
        layers = {key: key.removesuffix(".weight").removeprefix("diffusion_model.") for key in self.shapes}
        modules = self.model().model.diffusion_model
        hooks = [
            modules.get_submodule(name).register_forward_hook(lambda *_, key=key: called.add(key))
            for key, name in layers.items()
        ]
        self.sample(self.model())
        for hook in hooks:
            hook.remove()
        return [key for key in self.shapes if key not in called]

    @cached_property
    def dialects(self) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
        """LoRA key prefixes with the shapes they are for: whole weights, and slices where the host maps them."""
        whole: dict[str, list[str]] = {}
        last: dict[str, str] = {}
        slices: dict[str, dict[tuple[int, int, int], str]] = {}
        for prefix, raw in comfy.lora.model_lora_keys_unet(self.model().model, {}).items():
            target = Target(raw) if isinstance(raw, str) else Target(*raw)
            if target.key not in self.shapes:
                continue
            if target.offset is None:
                last[target.key] = prefix
                if target.function is None:
                    whole.setdefault(target.key, []).append(prefix)
            elif sum(target.offset[1:]) <= self.shapes[target.key][target.offset[0]]:
                slices.setdefault(target.key, {})[target.offset] = prefix
        sliced = {}
        for key, shape in self.shapes.items():
            apart = dict(_apart(slices.get(key, {})))
            for (dim, _, length), prefix in apart.items():
                sliced[prefix] = (*shape[:dim], length, *shape[dim + 1 :])
            if not apart:
                sliced[last[key]] = shape
        return {whole[key][0]: shape for key, shape in self.shapes.items()}, sliced

    def file(self, kind: str, *, slices: bool = False, size: float = 0.5) -> Path | None:
        """A LoRA file of a kind on all layers it can be for; None where there are none."""
        prefixes = self.dialects[slices]
        fit = {prefix: shape for prefix, shape in prefixes.items() if kind == IN_TURN or suits(kind, shape)}
        self._files += 1
        path = self.folder / f"{self.family.model}-{self._files}.safetensors"
        if not fit:
            return None
        return _in_turn(path, fit) if kind == IN_TURN else make_file(path, kind, fit, seed=1 + slices, size=size)

    def ours(
        self, model: ModelPatcher, files: dict[str, Path], scale: float = 1.0, tamper: Tamper | None = None
    ) -> tuple[ModelPatcher, list[LoraPatches]]:
        """The files on the model, fused at run time by the plain sum."""
        patches = {role: model_patches(read_lora(path.name, str(path)), model) for role, path in files.items()}
        if tamper is not None:
            tamper(patches["style"], self)
        fused = add_loras(model, [(patches[role], role, STRENGTHS[role] * scale) for role in files])
        return set_policy(fused, Sum(), always_live=True), list(patches.values())

    def core(self, model: ModelPatcher, files: dict[str, Path]) -> Tensor:
        return self.sample(tiny.core_stacked(model, *((path, STRENGTHS[role]) for role, path in files.items())))


def suits(kind: str, shape: tuple[int, ...]) -> bool:
    """Whether there are adapters of the kind for such a weight: Tucker cores are for pictures, rotations for blocks."""
    if kind in TUCKER_KINDS:
        return len(shape) == 4
    if kind.endswith("boft"):
        return shape[0] % 16 == 0
    return not kind.endswith("oft") or shape[0] % 4 == 0


def measure(
    bench: Bench, kind: str, dtype: torch.dtype = torch.float32, tamper: Tamper | None = None
) -> Cell | None:
    """Measure a cell; None where the family has no layer for such adapters."""
    low = dtype != torch.float32
    size = 0.1 if low else 0.5
    subject, style = bench.file(kind, size=size), bench.file("lora", slices=True, size=size)
    if subject is None or style is None:
        return None
    model, base = bench.model(dtype), bench.base(dtype)
    pair = {"subject": subject, "style": style}
    fused, patches = bench.ours(model, pair, tamper=tamper)
    ours, core = bench.sample(fused), bench.core(model, pair)
    if low:
        truth = bench.core(bench.model(torch.float32, dtype), pair)
        error = rms(ours - truth) / rms(core - truth)
    else:
        alone = {"subject": subject}
        error = max(
            tiny.relative(ours, core),
            tiny.relative(bench.sample(bench.ours(model, alone)[0]), bench.core(model, alone)),
        )
    off = bench.sample(bench.ours(model, pair, scale=0.0)[0])
    return Cell(
        bench.family.model,
        kind,
        dtype,
        error,
        tiny.relative(base, core),
        torch.equal(off, base),
        sum(len(p.routed) for p in patches),
        sum(len(p.merged) for p in patches),
        sum(len(set(p.file.tensors) - p.applied) for p in patches),
    )


def rms(difference: Tensor) -> float:
    return float(difference.double().square().mean().sqrt())


def louder(patches: LoraPatches, bench: Bench) -> None:
    """One layer's delta is a hundredth too large."""
    target = _victim(patches, bench)
    delta: Any = patches.routed[target]
    patches.routed[target] = replace(delta, scale=delta.scale * 1.01)


def dropped(patches: LoraPatches, bench: Bench) -> None:
    """One slice of a fused weight, or one layer where none is fused, is left out."""
    del patches.routed[_victim(patches, bench)]


BREAKS: dict[str, Tamper] = {"louder": louder, "dropped": dropped}


def _victim(patches: LoraPatches, bench: Bench) -> Target:
    targets = [target for target in patches.routed if target.key not in bench.idle]
    sliced = [target for target in targets if target.offset is not None] or targets
    return sliced[len(sliced) // 2]


def _apart(slices: dict[tuple[int, int, int], str]) -> Iterator[tuple[tuple[int, int, int], str]]:
    """Slices that do not overlap, small ones first."""
    taken: list[range] = []
    for (dim, start, length), prefix in sorted(slices.items(), key=lambda item: item[0][2]):
        if dim == 0 and all(start >= r.stop or start + length <= r.start for r in taken):
            taken.append(range(start, start + length))
            yield (dim, start, length), prefix


def _in_turn(path: Path, prefixes: dict[str, tuple[int, ...]]) -> Path:
    """A file whose layers have one kind of adapter after the other."""
    from safetensors.torch import save_file

    maker, tensors, turn = Maker(1), {}, 0
    for prefix, shape in prefixes.items():
        kinds = [kind for kind in ADAPTERS if suits(kind, shape)]
        make = {**KINDS, **TUCKER_KINDS}[kinds[turn % len(kinds)]]
        turn += 1
        tensors |= {f"{prefix}.{name}": tensor.contiguous() for name, tensor in make(maker, shape).items()}
    save_file(tensors, path)
    return path


def bench_for(name: str, folder: Path) -> Bench:
    return Bench(FAMILIES[name], folder)
