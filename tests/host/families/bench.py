"""One family's small models, LoRA files for all their layers in the dialects the host maps, and samples with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import comfy.lora
import torch
from comfy.model_patcher import ModelPatcher
from safetensors.torch import save_file
from torch import Tensor

from lora_conductor.fusion.policies import Sum
from lora_conductor.host.fusing.attach import add_loras, set_policy
from lora_conductor.host.loras import LoraPatches, Target, model_patches, read_lora

from .. import tiny
from ..adapter_files import ROWS, Maker, make_file
from .family import Family, build, sample

ADAPTERS = ["lora", "tucker", "loha", "lokr", "glora", "oft", "boft", "dora_out_lora", "diff"]
IN_TURN = "all in turn"
STRENGTHS = {"subject": 0.8, "style": -0.6}

Shape = tuple[int, ...]
Tamper = Callable[[LoraPatches, "Bench"], None]


class Bench:
    """What the cells of a family's row share."""

    def __init__(self, family: Family, folder: Path) -> None:
        self.family, self.folder = family, folder
        self._bases: dict[tuple[torch.dtype, int], Tensor] = {}
        self._models: dict[tuple[torch.dtype, torch.dtype | None], ModelPatcher] = {}
        self._files = 0

    def model(self, dtype: torch.dtype = torch.float32, rounded_to: torch.dtype | None = None) -> ModelPatcher:
        if (dtype, rounded_to) not in self._models:
            self._models[dtype, rounded_to] = build(self.family, dtype, rounded_to)
        return self._models[dtype, rounded_to]

    def base(self, dtype: torch.dtype, turns: int = 1) -> Tensor:
        """The output without LoRAs."""
        if (dtype, turns) not in self._bases:
            self._bases[dtype, turns] = self.sample(self.model(dtype), turns)
        return self._bases[dtype, turns]

    def sample(self, model: ModelPatcher, turns: int = 1) -> Tensor:
        """The output, for so many noises."""
        return torch.cat([sample(self.family, model, turn) for turn in range(turns)])

    def core(self, model: ModelPatcher, files: dict[str, Path], turns: int = 1) -> Tensor:
        """The output with the files stacked by the host's own loaders."""
        stacked = tiny.core_stacked(model, *((path, STRENGTHS[role]) for role, path in files.items()))
        return self.sample(stacked, turns)

    def ours(
        self,
        model: ModelPatcher,
        files: dict[str, Path],
        scale: float = 1.0,
        tamper: Tamper | None = None,
        turns: int = 1,
    ) -> tuple[Tensor, list[LoraPatches]]:
        """The output with the files fused at run time by the plain sum, and what became of the files."""
        patches = {role: model_patches(read_lora(path.name, str(path)), model) for role, path in files.items()}
        if tamper is not None:
            tamper(patches["style"], self)
        fused = add_loras(model, [(patches[role], role, STRENGTHS[role] * scale) for role in files])
        return self.sample(set_policy(fused, Sum(), always_live=True), turns), list(patches.values())

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Of all linear and convolution layers, by weight key."""
        return tiny.layer_shapes(self.model())

    @cached_property
    def idle(self) -> list[str]:
        """Weights of layers that one step does not call."""
        called: set[str] = set()
        hooks = []
        for key in self.shapes:
            layer = self.model().model.get_submodule(key.removesuffix(".weight"))
            hooks.append(layer.register_forward_hook(lambda *_, key=key: called.add(key)))
        self.sample(self.model())
        for hook in hooks:
            hook.remove()
        return [key for key in self.shapes if key not in called]

    @cached_property
    def dialects(self) -> dict[str, dict[str, Shape]]:
        """LoRA key prefixes with the shapes they are for.

        "whole" is the first dialect the host maps to weights as they are; "sliced" has slices of fused weights where
        the host maps any, and the last dialect for the others; "reordered" is that with the dialect of weights whose
        rows the host has in another order.
        """
        first: dict[str, str] = {}
        last: dict[str, str] = {}
        reordered: dict[str, str] = {}
        slices: dict[str, dict[tuple[int, int, int], str]] = {}
        for prefix, raw in comfy.lora.model_lora_keys_unet(self.model().model, {}).items():
            target = Target(raw) if isinstance(raw, str) else Target(*raw)
            if target.key not in self.shapes:
                continue
            if target.function is not None:
                reordered[target.key] = prefix
            elif target.offset is None:
                first.setdefault(target.key, prefix)
                last[target.key] = prefix
            elif sum(target.offset[1:]) <= self.shapes[target.key][target.offset[0]]:
                slices.setdefault(target.key, {})[target.offset] = prefix
        parts = {
            prefix: (length, *self.shapes[key][1:])
            for key, found in slices.items()
            for (_, _, length), prefix in _apart(found)
        }
        uncut = {key: shape for key, shape in self.shapes.items() if key not in slices}
        return {
            "whole": {first[key]: shape for key, shape in self.shapes.items()},
            "sliced": parts | {last[key]: shape for key, shape in uncut.items()},
            "reordered": parts | {reordered.get(key, last[key]): shape for key, shape in uncut.items()},
        }

    def file(self, kind: str, dialect: str, *, seed: int = 1, size: float = 0.5) -> Path | None:
        """A LoRA file of a kind on all layers there are such adapters for; None where there are none."""
        prefixes = self.dialects[dialect]
        fit = {prefix: shape for prefix, shape in prefixes.items() if kind == IN_TURN or ROWS[kind].suits(shape)}
        self._files += 1
        path = self.folder / f"{self.family.model}-{self._files}.safetensors"
        if not fit:
            return None
        return _in_turn(path, fit, seed, size) if kind == IN_TURN else make_file(path, kind, fit, seed=seed, size=size)


def _apart(slices: dict[tuple[int, int, int], str]) -> Iterator[tuple[tuple[int, int, int], str]]:
    """Slices of rows that do not overlap, small ones first."""
    taken: list[range] = []
    for (dim, start, length), prefix in sorted(slices.items(), key=lambda item: item[0][2]):
        if dim == 0 and all(start >= r.stop or start + length <= r.start for r in taken):
            taken.append(range(start, start + length))
            yield (dim, start, length), prefix


def _in_turn(path: Path, prefixes: dict[str, Shape], seed: int, size: float) -> Path:
    """A file whose layers have one kind of adapter after the other."""
    maker, tensors = Maker(seed, size), {}
    for turn, (prefix, shape) in enumerate(prefixes.items()):
        kinds = [kind for kind in ADAPTERS if ROWS[kind].suits(shape)]
        made = ROWS[kinds[turn % len(kinds)]].make(maker, shape)
        tensors |= {f"{prefix}.{name}": tensor.contiguous() for name, tensor in made.items()}
    save_file(tensors, path)
    return path
