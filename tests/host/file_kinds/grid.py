"""The grid of file kinds: dialect x adapter x oddity, ours against ComfyUI's own loaders, one step of sampling each.

What core's loaders can use of a file must give core's picture, in every chain of loaders; what they cannot must be
refused by name, and so must files that they silently leave without any effect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.lora
import torch
from comfy.model_patcher import ModelPatcher
from safetensors.torch import save_file
from torch import Tensor

from lora_conductor.fusion.policies import Sum
from lora_conductor.host.core import ConductorError
from lora_conductor.host.fusing import fused, set_policy
from lora_conductor.host.fusing.attach import add_loras
from lora_conductor.host.loras import LoraPatches, model_patches, read_lora

from .. import tiny
from ..adapter_files import ROWS, Maker
from ..families.bench import Bench
from ..families.catalogue import FAMILIES
from .dialects import DIFFUSERS, GENERIC, KOHYA, NAMINGS, Shape, named, prefixes_of
from .oddities import ODDITIES, Chain, Layers, Oddity, victim_of

MODELS = ("Flux", "SD15", "SDXL", "QwenImage")
EXACT = 1e-5  # of the output's range
MOVED = 1e-3  # of the range: less, and a cell shows nothing
STRENGTH = 0.7
# On some versions of torch the host leaves LoKr with a Tucker core out, with a line in its log: nothing to compare.
KINDS = [kind for kind in ROWS if kind != "lokr_tucker"]
# The kinds that are tried in other dialects than core's own, on other models than the first, and with odd alphas.
FEW = (
    "lora",
    "loha",
    "lokr",
    "lokr_factored",
    "glora",
    "diff",
    "oft",
    "boft",
    "dora_out_lora",
    "dora_in_oft",
    "tucker",
)

Tamper = Callable[[LoraPatches], None]


@dataclass(frozen=True)
class Cell:
    """What was measured.

    Attributes:
        error: the worst of its chains, of the output's range.
        moved: how far core's loaders move the output, of its range; the least of the chains.
        said: what was refused, by us.
        useless: what core makes of the file: an error, numbers that are none, or no difference; empty if it is of use.
        named: whether what was refused names the layer, or the file, that is to blame.
    """

    model: str
    dialect: str
    kind: str
    oddity: str
    error: float
    moved: float
    said: str = ""
    useless: str = ""
    named: bool = False

    @property
    def passed(self) -> bool:
        if self.useless:
            return bool(self.said) and self.named and self.error <= EXACT
        return not self.said and self.error <= EXACT and self.moved > MOVED


class Grid:
    """All cells of one model."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.bench = Bench(FAMILIES[name], folder)
        self.prefixes = prefixes_of(self.bench)
        weights = comfy.lora.model_lora_keys_unet(self.model.model, {}).items()
        self._keys = {prefix: raw if isinstance(raw, str) else raw[0] for prefix, raw in weights}
        self._pictures: dict[Any, Tensor] = {}
        self._number = 0

    @property
    def model(self) -> ModelPatcher:
        return self.bench.model()

    def cells(self) -> Iterator[tuple[str, str, str, str]]:
        """Head, naming, kind and oddity: every kind and oddity in core's own dialect, fewer kinds in the others."""
        everything = self.name == MODELS[0]
        for head in self.prefixes:
            for kind in KINDS if head == GENERIC and everything else FEW:
                for oddity in ODDITIES if head == GENERIC or kind == "lora" else ("none", "core's behind"):
                    if kind in FEW or not ODDITIES[oddity].of_alpha:
                        yield head, KOHYA, kind, oddity
            for naming in NAMINGS:
                for kind in ("lora", "dora_out_lora") if naming != KOHYA and head in (GENERIC, *DIFFUSERS) else ():
                    yield head, naming, kind, "none"

    def measure(self, head: str, naming: str, kind: str, name: str, tamper: Tamper | None = None) -> Cell | None:
        """Measure a cell; None where there are no such files."""
        oddity, shapes = ODDITIES[name], self._shapes(head, kind)
        if not shapes or not _exists(oddity, head, kind, self.name):
            return None
        maker = Maker(1)
        layers: Layers = {prefix: ROWS[kind].make(maker, shape) for prefix, shape in shapes.items()}
        if oddity.of_alpha and not all("alpha" in tensors for tensors in layers.values()):
            return None
        layers = oddity.change(layers, shapes)
        files = {"odd": self._file(layers, naming)} | self._companions(head)
        refused = model_patches(read_lora(files["odd"].name, str(files["odd"])), self.model).refused
        said = "; ".join(f"{name}: {why}" for name, why in refused.items())
        cell = Cell(self.name, _dialect(head, naming), kind, name, 0.0, float("inf"), said)
        for chain in oddity.chains:
            cell = self._in_chain(cell, chain, files, layers, oddity, tamper)
        return cell

    def _in_chain(
        self, cell: Cell, chain: Chain, files: dict[str, Path], layers: Layers, oddity: Oddity, tamper: Tamper | None
    ) -> Cell:
        loaded = [name for step in chain for name in ((step,) if isinstance(step, str) else step) if name]
        victim = victim_of(layers)
        core, useless = self._of_core([files[name] for name in loaded])
        if useless or oddity.of_one_layer:
            # What remains of the file without the layer that core cannot use, or leaves out with a line in its log.
            rest = self._file({prefix: tensors for prefix, tensors in layers.items() if prefix != victim}, KOHYA)
            without, _ = self._of_core([rest if name == "odd" else files[name] for name in loaded])
            if core is not None and without is not None and torch.equal(core, without):
                useless = "left out"
            core = without
        if cell.oddity == "alpha inf" and ROWS[cell.kind].in_float32:
            useless = "no constraint"
        moved = tiny.relative(self.bench.base(torch.float32), core) if core is not None else 0.0
        if not useless and moved == 0:
            useless = "no difference"
        cell = replace(cell, useless=cell.useless or useless, moved=min(cell.moved, moved))
        try:
            pictures = list(self._ours(chain, files, oddity, not ROWS[cell.kind].additive, tamper))
        except ConductorError as error:
            cell, pictures = replace(cell, said=str(error)), []
        blamed = victim, self._keys.get(victim, victim), files["odd"].name
        cell = replace(cell, named=any(name in cell.said for name in blamed))
        errors = [tiny.relative(picture, core) for picture in pictures if core is not None]
        return replace(cell, error=max([cell.error, *errors]))

    def _ours(
        self, chain: Chain, files: dict[str, Path], oddity: Oddity, sees_weight: bool, tamper: Tamper | None
    ) -> Iterator[Tensor]:
        """Pictures in which every layer gets both LoRAs whole: added while sampling, and as core's patches."""
        model = self.model
        for step in chain:
            if isinstance(step, str):
                model = tiny.core_stacked(model, (files[step], STRENGTH))
            else:
                roles = {role: files[name] for role, name in zip(("subject", "style"), step, strict=True) if name}
                model = _loaded(model, roles, tamper)
        loads = [step for step in chain if not isinstance(step, str)]
        # Added while sampling, each of the two looks at the model's own weight; one after the other is only for `sum`.
        if not (sees_weight and any(load[0] and load[1] == "odd" for load in loads)):
            yield self.bench.sample(set_policy(model, Sum(), always_live=True))
        if oddity.static or all("" in load or "rest" in load for load in loads):
            yield self.bench.sample(set_policy(model, Sum()) if oddity.static else model)

    def _of_core(self, paths: list[Path]) -> tuple[Tensor | None, str]:
        """The picture with the host's own loaders; why there is none."""
        key = tuple(path.name for path in paths)
        if key not in self._pictures:
            try:
                stacked = tiny.core_stacked(self.model, *((path, STRENGTH) for path in paths))
                picture = self.bench.sample(stacked)
            except (ArithmeticError, ValueError, RuntimeError, TypeError, KeyError) as error:
                return None, type(error).__name__
            if not bool(picture.isfinite().all()):
                return None, "NaN"
            if not any("odd" in name for name in key):
                return picture, ""
            self._pictures[key] = picture
        return self._pictures[key], ""

    def _shapes(self, head: str, kind: str) -> dict[str, Shape]:
        return {prefix: shape for prefix, shape in self.prefixes[head].items() if ROWS[kind].suits(shape)}

    def _companions(self, head: str) -> dict[str, Path]:
        """Plain LoRAs of the same layers, and one of those that the file of a disjoint pair leaves out."""
        made = {}
        for seed, name in ((2, "plain"), (3, "third"), (4, "rest")):
            maker = Maker(seed)
            shapes = list(self.prefixes[head].items())
            made[name] = self.folder / f"{self.name}-{name}-{HEAD_NAMES[head]}.safetensors"
            if not made[name].exists():
                chosen = shapes[1::2] if name == "rest" else shapes
                _save({prefix: maker.lora(shape) for prefix, shape in chosen}, KOHYA, made[name])
        return made

    def _file(self, layers: Layers, naming: str) -> Path:
        self._number += 1
        path = self.folder / f"{self.name}-odd-{self._number}.safetensors"
        _save(layers, naming, path)
        return path


def _loaded(model: ModelPatcher, roles: dict[str, Path], tamper: Tamper | None) -> ModelPatcher:
    if tamper is None:
        return fused(model, **{role: (path, STRENGTH) for role, path in roles.items()})
    loras = []
    for role, path in roles.items():
        patches = model_patches(read_lora(path.name, str(path)), model)
        tamper(patches)
        loras.append((patches, role, STRENGTH))
    return add_loras(model, loras)


def _save(layers: Layers, naming: str, path: Path) -> None:
    tensors: dict[str, Tensor] = {}
    for prefix, own in layers.items():
        tensors |= named(prefix, own, naming)
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)


def _exists(oddity: Oddity, head: str, kind: str, model: str) -> bool:
    if oddity.only and kind not in oddity.only:
        return False
    return (head == GENERIC or not oddity.generic) and oddity.model in ("", model)


HEAD_NAMES = {"": "bare"} | {head: head.strip("._") for head in ("diffusion_model.", "lora_unet_", "lora_transformer_")}
HEAD_NAMES |= {head: head.strip("._") for head in ("lycoris_", "unet.", "transformer.")}


def _dialect(head: str, naming: str) -> str:
    return f"{head or '(bare)'}" + ("" if naming == KOHYA else f" {naming}")


def louder(patches: LoraPatches) -> None:
    """One layer's delta is a hundredth too large."""
    target = list(patches.routed)[len(patches.routed) // 2]
    delta: Any = patches.routed[target]
    patches.routed[target] = replace(delta, scale=delta.scale * 1.01)


def dropped(patches: LoraPatches) -> None:
    """One layer is left out."""
    target = list(patches.routed)[len(patches.routed) // 2]
    del patches.routed[target], patches.core_patches[target]


BREAKS: dict[str, Tamper] = {"louder": louder, "dropped": dropped}
